"""quantize_rows as its contract reads. XLA is given the same: two reductions, then elementwise."""

import jax
import jax.numpy as jnp
import numpy as np

# top / TINY and TINY / top are normal float32 numbers, so scales stay finite and accurate.
TINY = np.float32(1e-30)


def run(
    x: jax.Array,
    *,
    bits: int,
    symmetric: bool,
    scale: jax.Array | None,
    zero: jax.Array | None,
    with_sum: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """See the contract."""
    x = x.astype(jnp.float32)
    half = 2 ** (bits - 1)
    low_code, high_code = (1 - half if symmetric else -half), half - 1
    if scale is not None:
        shift = jnp.float32(0) if zero is None else zero.astype(jnp.float32)
        levels = jnp.where(jnp.isnan(x), 0, jnp.round(x * (1 / scale)))
        codes = jnp.clip(levels + shift, low_code, high_code)
    else:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        top = np.float32(half - 1 if symmetric else 2 * half - 1)
        low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
        extent = jnp.maximum(-low, high) if symmetric else high - low
        finite = extent < jnp.inf  # False for NaN
        extent = jnp.where(finite, jnp.maximum(extent, TINY), 1)
        levels = jnp.round(jnp.where(finite, x, 0) * (top / extent))
        shift = jnp.float32(0) if symmetric else -half - jnp.round(jnp.where(finite, low, 0) * (top / extent))
        codes = jnp.where(finite, jnp.clip(levels + shift, low_code, high_code), 0)
        scale = jnp.where(finite, extent * (1 / top), jnp.nan)
        zero = None if symmetric else jnp.where(finite, shift, 0).astype(jnp.int8)
    codes = codes.astype(jnp.int8)
    return codes, scale, zero, codes.sum(1, dtype=jnp.int32, keepdims=True) if with_sum else None
