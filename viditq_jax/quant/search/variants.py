"""One Net in several widths of its weights, as data: which layer has which bits changes arrays and no
program.

Every width is rounded as the recipe says, and then stored a code a byte; so all widths of a layer have the
same shapes and types, and any mixture of them runs in one compiled program, with the integer products of
the plan.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from viditq_jax.net import Net
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.qweight import QWeight, code_sums, quantized_part
from viditq_jax.quant.ranges import PerRange
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule
from viditq_jax.quant.stats import Stats

Bits = int | tuple[int, ...]  # of a layer, at all times or a number for each denoising range


def searched(recipe: Recipe, net: Net) -> dict[str, Rule]:
    """The layers whose bits are open, in the order of the model: those that the recipe gives integers.

    Raises RecipeError where there are none, and for what cannot be searched: weights that change over the
    denoising ranges already, and tuning, which rounds blocks for one plan alone.
    """
    rules = recipe.resolve(net.weights())
    found = {path: rule for path, rule in rules.items() if rule.weight and rule.weight.kind == "int"}
    if not found:
        raise RecipeError(f"recipe {recipe.name} gives no layer integers, so there are no bits to choose.")
    if recipe.ranges:
        raise RecipeError(
            f"recipe {recipe.name} has parameters that change over the denoising ranges"
            f" {list(recipe.ranges)}; search with one that has none."
        )
    if recipe.tuning:
        raise RecipeError(
            f"recipe {recipe.name} is tuned by {recipe.tuning}, for one plan alone; drop the tuning, search,"
            " and tune the plan."
        )
    return found


def with_bits(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with all integer weights of this width."""

    def change(rule: Rule) -> Rule:
        if rule.weight is None or rule.weight.kind != "int":
            return rule
        return dataclasses.replace(rule, weight=dataclasses.replace(rule.weight, bits=bits))

    return dataclasses.replace(recipe, rules=tuple(map(change, recipe.rules)))


@dataclasses.dataclass(frozen=True)
class Variants:
    """The same Net in each of some widths, a code a byte."""

    nets: Mapping[int, Net]
    layers: tuple[str, ...]

    @classmethod
    def of(cls, net: Net, recipe: Recipe, bits: Sequence[int], stats: Stats | None = None) -> "Variants":
        """Quantize once a width.

        net, stats: as `quantize` takes them. Raises ValueError for bits that no integer has.
        """
        layers = tuple(searched(recipe, net))
        nets = {}
        for b in bits:
            small = quantize(net, with_bits(recipe, b), stats)
            nets[b] = small.map_weights(lambda path, weight: _wide(weight) if path in layers else weight)
        return cls(nets, layers)

    @cached_property
    def weights(self) -> dict[int, dict[str, Any]]:
        """What sits in each slot, for each width."""
        return {b: net.weights() for b, net in self.nets.items()}

    def chosen(self, bits: Mapping[str, Bits]) -> Net:
        """The Net in which each layer has its bits.

        bits: of every layer; where one has several, all have: a number for each denoising range. Raises
            ValueError for a layer without bits.
        """
        if missing := [path for path in self.layers if path not in bits]:
            raise ValueError(f"{len(missing)} layers have no bits: {missing[0]}, ...; give each its own.")

        def pick(path: str, weight: Any) -> Any:
            if path not in self.layers:
                return weight
            wanted = bits[path]
            if isinstance(wanted, int):
                return self.weights[wanted][path]
            return PerRange.of([self.weights[b][path] for b in wanted])

        return next(iter(self.nets.values())).map_weights(pick)

    def weights_alone(self) -> "Variants":
        """The same weights in float32 models whose inputs are not rounded: what sensitivities are measured
        on.

        Where inputs are rounded, the smallest change of a layer moves codes in all that follow, and the
        samples end as far apart as two roundings do. Under that noise nothing is seen of what fewer bits
        cost.
        """

        def alone(path: str, weight: Any) -> Any:
            if path not in self.layers:
                return weight
            return dataclasses.replace(weight, weight_sum=None, act_scale=None, act_zero=None, act=None)

        nets = {b: net.map_weights(alone).astype(jnp.float32) for b, net in self.nets.items()}
        return dataclasses.replace(self, nets=nets)

    def stored_bytes(self, path: str, bits: int) -> int:
        """Bytes that a layer takes in a plan, with its scales and sums: two codes a byte up to 4 bits."""
        part = quantized_part(self.weights[bits][path])
        assert part is not None
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(part))
        codes = part.weight.values.size
        return whole - codes // 2 if bits <= 4 else whole


def _wide(weight: QWeight) -> QWeight:
    """The same numbers, a code a byte, as those of 8 bits are stored."""
    old = weight.weight
    wide = QTensor(old.codes(), old.scale, old.zero, dataclasses.replace(old.spec, bits=8))
    sums = None if weight.weight_sum is None else code_sums(wide)
    return dataclasses.replace(weight, weight=wide, weight_sum=sums)
