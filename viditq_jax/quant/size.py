"""How much memory quantized weights take."""

from typing import Any, NamedTuple

import jax

from viditq_jax.net import Net
from viditq_jax.quant.qweight import quantized_part


class WeightBytes(NamedTuple):
    """Bytes of one weight: `stored` with its scales, zero points and sums; `dense` as a bfloat16 matrix."""

    stored: int
    dense: int


def weight_bytes(net: Net) -> dict[str, WeightBytes]:
    """The bytes of each quantized linear weight, by layer; layers left in floating point are absent."""
    return {path: _bytes(weight) for path, weight in net.weights().items() if quantized_part(weight)}


def _bytes(weight: Any) -> WeightBytes:
    n, k = weight.shape
    return WeightBytes(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weight)), 2 * n * k)
