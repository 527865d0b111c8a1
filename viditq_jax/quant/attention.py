"""Attention in 8 bits: which modules of a model can do it, and the rules of a recipe that choose them.

A module that can has the static field `qk_bits`, that of the op `attention`: None, or 8 for int8 queries and
keys. There is no parameter in it, so it is in the graphdef; a recipe sets it, and an artifact, which holds
its recipe, has it set again when it is loaded.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx

from viditq_jax.net import Net, path_name
from viditq_jax.quant.spec import Spec

TOKENS = Spec.parse("int8/token")  # the one format that there is


@dataclasses.dataclass(frozen=True)
class AttentionRule:
    """What becomes of the queries and keys of the attention modules whose path matches one of the patterns.

    match: patterns of paths such as "blocks/0/attn". qk: "int8/token", smoothed keys included; None leaves
    floats. optional, why: as of a Rule.
    """

    match: tuple[str, ...]
    qk: Spec | None = None
    optional: bool = False
    why: str = ""

    def faults(self) -> list[str]:
        """What makes the rule impossible for any module."""
        if self.qk in (None, TOKENS):
            return []
        return [f"qk: {self.qk}; queries and keys are {TOKENS}, or null for floats"]

    def to_json(self) -> dict[str, Any]:
        """The rule as it is written in a file."""
        qk = None if self.qk is None else str(self.qk)
        return {"match": list(self.match), "qk": qk, "optional": self.optional, "why": self.why}


def attentions(net: Net) -> dict[str, int | None]:
    """The bits of queries and keys, None for floats, of each module that can have 8, by its path."""
    modules = nnx.iter_modules(nnx.merge(net.graphdef, net.params))
    return {path_name(path): module.qk_bits for path, module in modules if hasattr(module, "qk_bits")}


def with_attention(net: Net, rules: Mapping[str, AttentionRule]) -> Net:
    """The net whose attention modules at these paths do what the rules say; parameters are the same."""
    if not rules:
        return net
    model = nnx.merge(net.graphdef, net.params)
    for path, module in nnx.iter_modules(model):
        rule = rules.get(path_name(path))
        if rule is not None:
            bits = None if rule.qk is None else rule.qk.bits
            module.qk_bits = bits  # type: ignore[attr-defined]  # `attentions` found it there
    return Net.of(model)
