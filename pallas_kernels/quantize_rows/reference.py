"""quantize_rows as its contract reads. XLA is given the same: two reductions, then elementwise."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

# top / TINY and TINY / top are normal float32 numbers, so scales stay finite and accurate.
TINY = np.float32(1e-30)
FLOAT8_MAX = 448
FLOAT32_MAX = float(np.finfo(np.float32).max)


def run(
    x: jax.Array,
    *,
    bits: int,
    symmetric: bool,
    dtype: DTypeLike,
    scale: jax.Array | None,
    zero: jax.Array | None,
    with_sum: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """See the contract."""
    x = x.astype(jnp.float32)
    integers = dtype == jnp.int8
    high_code = 2 ** (bits - 1) - 1 if integers else FLOAT8_MAX
    low_code = -high_code if symmetric else -high_code - 1

    def codes_of(levels: jax.Array, shift: jax.Array) -> jax.Array:
        rounded = jnp.round(levels) if integers else levels  # the conversion to float8 rounds half to even
        return jnp.clip(rounded + shift, low_code, high_code)

    if scale is not None:
        levels = x * (1 / scale)
        shift = jnp.float32(0) if zero is None else zero.astype(jnp.float32)
        codes = codes_of(jnp.where(jnp.isnan(levels), 0, levels), shift)
        scale = jnp.where(jnp.abs(x).max(1, keepdims=True) < jnp.inf, scale, jnp.nan)
    else:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        top = np.float32(high_code if symmetric else high_code - low_code)
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        extent = jnp.maximum(-low, high) if symmetric else high - low
        finite = extent <= min(float(top) * 2.0**125, FLOAT32_MAX)  # False for NaN
        extent = jnp.where(finite, jnp.maximum(extent, TINY), 1)
        shift = (
            jnp.float32(0) if symmetric else low_code - jnp.round(jnp.where(finite, low, 0) * (top / extent))
        )
        codes = jnp.where(finite, codes_of(jnp.where(finite, x, 0) * (top / extent), shift), 0)
        scale = jnp.where(finite, extent * (1 / top), jnp.nan)
        zero = None if symmetric else jnp.where(finite, shift, 0).astype(jnp.int8)
    codes = codes.astype(dtype)
    return codes, scale, zero, codes.sum(1, dtype=jnp.int32, keepdims=True) if with_sum else None
