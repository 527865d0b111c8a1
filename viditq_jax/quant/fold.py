"""Balances that cost nothing: scales that go into the layer before, exactly.

Where channel j of a layer's input is a mix over tokens of one output row of another layer, as the input of an
attention's output projection is of its values, dividing that row of weight and bias divides the channel. The
balance of the input is then gone from the layer. Modules say where this holds (`folds`).

A balance of a normalized and modulated input goes into the modulation when the layer is called
(`nn.linear.Modulated`), and one of the prompt's keys and values is applied once a prompt: neither is here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from viditq_jax.net import Net, path_name
from viditq_jax.quant.methods import find_method
from viditq_jax.quant.recipe import Rule
from viditq_jax.quant.stats import Stats


class Source(NamedTuple):
    """The layer and its first output row that make the input channels of another."""

    path: str
    row: int


def sources(net: Net) -> dict[str, Source]:
    """For each layer whose input channels are output rows of another, that other."""
    found = {}
    for path, module in nnx.iter_modules(nnx.merge(net.graphdef, net.params)):
        for layer, (source, row) in getattr(module, "folds", dict)().items():
            found[path_name((*path, layer))] = Source(path_name((*path, source)), row)
    return found


def folded(net: Net, rules: Mapping[str, Rule]) -> dict[str, Source]:
    """The layers whose first step is a balance, one for all ranges, that the layer before can take over.

    It can if it is quantized itself: weights in bfloat16 would be rounded anew.
    """
    quantized = {path for path, rule in rules.items() if rule.weight is not None}
    return {
        path: source
        for path, source in sources(net).items()
        if source.path in quantized and _balance(rules.get(path)) is not None
    }


def fold(net: Net, rules: Mapping[str, Rule], stats: Stats) -> tuple[Net, Stats]:
    """The same function with these balances in the weights; and the statistics of the inputs that result.

    The weights come out in float32, so that nothing is rounded twice; biases keep their dtype.
    """
    weights = net.weights()
    divided: dict[str, list[tuple[int, Any]]] = {}
    multiplied, changed = {}, dict(stats)
    for path, source in folded(net, rules).items():
        method = _balance(rules[path])
        assert method is not None
        step = method.module.fit(weights[path], stats[path], method.options, path=path)
        multiplied[path] = step
        changed[path] = stats[path].through(step)
        divided.setdefault(source.path, []).append((source.row, step.scale))

    def rescale(name: str, variable: nnx.Variable) -> Any:
        value = variable.get_value()
        path, _, kind = name.rpartition("/")
        if kind == "weight" and path in multiplied:
            value = multiplied[path].weight(value)
        if kind not in ("weight", "bias") or path not in divided:
            return value
        dtype, value = value.dtype, value.astype(jnp.float32)
        for row, scale in divided[path]:
            rows = slice(row, row + len(scale))
            value = value.at[rows].divide(scale[:, None] if kind == "weight" else scale)
        return value.astype(dtype) if kind == "bias" else value

    return net.map_variables(rescale), changed


def _balance(rule: Rule | None) -> Any:
    """The first step of a rule where it is a balance that can be folded, else None."""
    if rule is None or rule.weight is None or not rule.prepare or rule.prepare[0].split(":")[0] != "balance":
        return None
    method = find_method("prepare", rule.prepare[0])
    return None if method.options.ranges else method
