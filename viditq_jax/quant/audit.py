"""What quantization did to each layer, as figures for people: the rule, bits, bytes, incoherence, error."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from viditq_jax.net import Net
from viditq_jax.quant.fold import fold, folded
from viditq_jax.quant.qweight import QWeight, quantized_part
from viditq_jax.quant.ranges import ByRange, PerRange
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.size import weight_bytes
from viditq_jax.quant.stats import LayerStats, Stats

TINY = 1e-30  # a weight of zeros has the incoherence and the error 0


def audit(net: Net, quantized: Net, recipe: Recipe, stats: Stats | None = None) -> dict[str, dict[str, Any]]:
    """A record a quantized layer, by its path; JSON-able.

    net: the float Net that `quantized` was made from by `recipe` and `stats`.
    incoherence: largest over mean of all numbers of a matrix, before and after the weight is prepared;
        input_incoherence the same of the inputs, the largest over the ranges, where they were calibrated, and
        null after a rotation, which statistics of channels do not tell (`drift.layer_noise` measures it).
    weight_error: norm of the error over the norm of the prepared weight, the low-rank branch included.
    """
    rules = recipe.resolve(net.weights())
    taken, stats = folded(net, rules), stats or {}
    whole, balanced = fold(net, rules, stats)
    plain, ready = net.weights(), whole.weights()
    sizes, records = weight_bytes(quantized), {}
    for path, weight in quantized.weights().items():
        part = quantized_part(weight)
        if part is None:
            continue
        rule = rules[path]
        one = weight.at(0) if isinstance(weight, (PerRange, ByRange)) else weight
        prepared = ready[path].astype(jnp.float32)
        for step in one.prepare:
            prepared = step.weight(prepared)
        records[path] = {
            "rule": recipe.rules.index(rule) + 1,
            "why": rule.why,
            "weight": str(part.weight.spec),
            "act": str(part.act) if part.act else None,
            "prepare": list(rule.prepare),
            "folded": path in taken,
            "rounding": rule.rounding,
            "low_rank": rule.low_rank,
            "bytes": sizes[path].stored,
            "bfloat16_bytes": sizes[path].dense,
            "incoherence": [float(_incoherence(plain[path])), float(_incoherence(prepared))],
            "input_incoherence": [_largest(stats.get(path)), _largest(_through(balanced.get(path), one))],
            "weight_error": float(_error(prepared, one)),
        }
    return records


def _through(layer: LayerStats | None, weight: QWeight) -> LayerStats | None:
    """The statistics of the prepared inputs."""
    if layer is not None:
        layer = dataclasses.replace(layer, gram=None)
        for step in weight.prepare:
            layer = layer.through(step)
    return layer


def _largest(layer: LayerStats | None) -> float | None:
    return None if layer is None or layer.low is None else float(_input_incoherence(layer))


@jax.jit
def _input_incoherence(layer: LayerStats) -> Float[Array, ""]:
    return layer.incoherence.max()


@jax.jit
def _incoherence(matrix: Float[Array, "n k"]) -> Float[Array, ""]:
    size = jnp.abs(matrix.astype(jnp.float32))
    return size.max() / jnp.maximum(size.mean(), TINY)


@jax.jit
def _error(prepared: Float[Array, "n k"], weight: QWeight) -> Float[Array, ""]:
    stored = weight.weight.dequantize()
    if weight.branch is not None:
        stored = stored + weight.branch.matrix()
    return jnp.linalg.norm(stored - prepared) / jnp.maximum(jnp.linalg.norm(prepared), TINY)
