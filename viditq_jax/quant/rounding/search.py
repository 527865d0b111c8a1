"""Range search: shrink the range of each channel, group or tensor until clipping costs more than steps save.

A range r * [low, high] of a part of the weight has steps r times as wide, so rounding errors shrink with r,
while numbers outside are clipped. `steps` factors r from 1 down to `smallest` are tried, each part keeps its
own best, and a trial is the real quantizer at the bits of the spec. So the error is never above that of
nearest rounding, which is r = 1. The released code searches one factor for all channels, skips 1, and tries a
wrong number of bits.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

from pallas_kernels.quantize_rows import quantize_rows
from viditq_jax.quant.qtensor import QTensor, quantize_tensor
from viditq_jax.quant.rounding._grid import refuse
from viditq_jax.quant.spec import Spec

NEEDS_GRAM = False
_TINY = np.float32(1e-30)


@dataclasses.dataclass(frozen=True)
class Options:
    """steps: how many ranges are tried. smallest: the last of them, as a part of the whole range.

    norm: errors count as |error|^norm; 2 is the squared error, more spares the largest numbers.
    """

    steps: int = 80
    smallest: float = 0.3
    norm: float = 2.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"a search in steps={self.steps}; try at least 2 ranges.")
        if not 0 < self.smallest < 1:
            raise ValueError(f"smallest={self.smallest} is no part of a range; choose one between 0 and 1.")
        if not 1 <= self.norm <= 8:
            raise ValueError(f"norm={self.norm}; choose 1 to 8, 2 for squared errors.")


@partial(jax.jit, static_argnames=("spec", "options"))
def fit(
    weight: Float[Array, "n k"],
    spec: Spec,
    gram: Float32[Array, "k k"] | None = None,
    options: Options = Options(),
) -> QTensor:
    """The weight in codes of the ranges with the smallest error.

    gram: if given, errors at input j count in proportion to gram[j, j], the sum of its squares: that is the
        error of the outputs if inputs were uncorrelated. Else all count the same.
    """
    refuse("search", weight, spec)
    weight = weight.astype(jnp.float32)
    shape = jax.eval_shape(lambda: quantize_tensor(weight, spec).scale).shape
    parts = weight.reshape(*shape, -1)  # the last axis: those who share a range
    low = jnp.minimum(parts.min(-1, keepdims=True), 0)
    high = jnp.maximum(parts.max(-1, keepdims=True), 0)
    if spec.symmetric:
        high = jnp.maximum(-low, high)
        low = -high
    # In units of the range, squares of tiny or huge weights stay within float32.
    unit = 1 / jnp.maximum(high - low, _TINY)
    importance = jnp.ones(weight.shape[1]) if gram is None else jnp.diag(gram)
    importance = importance / jnp.maximum(importance.max(), _TINY)
    importance = jnp.broadcast_to(importance, weight.shape).reshape(parts.shape)

    def clipped(factor: jax.Array) -> jax.Array:
        return jnp.clip(parts, factor * low, factor * high)

    def cost(factor: jax.Array) -> jax.Array:
        # what quantize_tensor does, without the packing
        flat = clipped(factor).reshape(-1, parts.shape[-1])
        rows = quantize_rows(flat, bits=spec.bits, symmetric=spec.symmetric)
        codes = rows.codes.astype(jnp.float32)
        values = (codes - (0 if rows.zero is None else rows.zero)) * rows.scale
        error = jnp.abs(values.reshape(parts.shape) - parts) * unit
        return (importance * error**options.norm).sum(-1, keepdims=True)

    def attempt(
        kept: tuple[jax.Array, jax.Array], factor: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        smallest, found = kept
        now = cost(factor)
        return (jnp.minimum(smallest, now), jnp.where(now < smallest, factor, found)), None

    factors = jnp.linspace(1, options.smallest, options.steps)
    (_, factor), _ = lax.scan(attempt, (jnp.full((*shape, 1), jnp.inf), jnp.ones((*shape, 1))), factors)
    return quantize_tensor(clipped(factor).reshape(weight.shape), spec)
