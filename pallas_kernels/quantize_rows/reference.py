"""quantize_rows as its contract reads: `prepared` rows, a Hadamard transform, `quantized` rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.hadamard import reference as hadamard

# top / TINY and TINY / top are normal float32 numbers, so scales stay finite and accurate.
TINY = np.float32(1e-30)
FLOAT8_MAX = 448
FLOAT32_MAX = float(np.finfo(np.float32).max)

Result = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]


def run(
    x: jax.Array,
    *,
    modulation: tuple[jax.Array, jax.Array] | None,
    eps: float,
    activation: str | None,
    balance: jax.Array | None,
    signs: jax.Array | None,
    block: int | None,
    regular: bool,
    bits: int,
    symmetric: bool,
    dtype: DTypeLike,
    scale: jax.Array | None,
    zero: jax.Array | None,
    with_sum: bool,
) -> Result:
    """See the contract."""
    y = prepared(x, modulation=modulation, eps=eps, activation=activation, balance=balance)
    if block is not None:
        y = hadamard.run(signed(y, signs), block=block, regular=regular)
    return quantized(
        y, bits=bits, symmetric=symmetric, dtype=dtype, scale=scale, zero=zero, with_sum=with_sum
    )


def prepared(
    x: jax.Array,
    *,
    modulation: tuple[jax.Array, jax.Array] | None,
    eps: float,
    activation: str | None,
    balance: jax.Array | None,
) -> jax.Array:
    """What the contract does before the rotation, float32."""
    y = x.astype(jnp.float32)
    if modulation is not None:
        shift, factor = folded(modulation, balance if activation is None else None)
        normal = normalized(y.reshape(len(shift), -1, y.shape[1]), eps)
        y = (normal * factor[:, None] + shift[:, None]).reshape(y.shape)
    if activation is not None:
        y = jax.nn.gelu(y, approximate=True)
    if balance is not None and (modulation is None or activation is not None):
        y = y * (1 / balance.astype(jnp.float32))
    return y


def normalized(y: jax.Array, eps: float) -> jax.Array:
    """Rows of mean 0 and variance 1."""
    centered = y - y.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + eps)


def folded(modulation: tuple[jax.Array, jax.Array], balance: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """shift and 1 + scale in float32, both divided by the balance: by its inverse, as everywhere, for whether
    XLA itself makes products of divisions depends on the program around them.
    """
    shift, factor = modulation[0].astype(jnp.float32), 1 + modulation[1].astype(jnp.float32)
    if balance is None:
        return shift, factor
    inverse = 1 / balance.astype(jnp.float32)
    return shift * inverse, factor * inverse


def signed(y: jax.Array, signs: jax.Array | None) -> jax.Array:
    """The channels whose bit is 1, negated."""
    return y if signs is None else jnp.where(jnp.unpackbits(signs, count=y.shape[1]) == 1, -y, y)


class Grid(NamedTuple):
    """What turns numbers of a row into levels, and codes back: [m, 1] each, or [1, 1] where it was given."""

    inverse: jax.Array  # levels are x * inverse; 0 for a row without codes
    shift: jax.Array | np.float32  # codes are round(levels) + shift
    scale: jax.Array
    zero: jax.Array | None


def quantized(x: jax.Array, *, with_sum: bool, **options: Any) -> Result:
    """The codes of float32 rows."""
    return coded(x, grid(x, **options), with_sum=with_sum, **options)


def grid(
    x: jax.Array,
    *,
    bits: int,
    symmetric: bool,
    dtype: DTypeLike,
    scale: jax.Array | None,
    zero: jax.Array | None,
) -> Grid:
    """From the extremes of rows, or as given."""
    if scale is not None:
        shift = np.float32(0) if zero is None else zero.astype(jnp.float32)
        finite = jnp.abs(x).max(1, keepdims=True) < jnp.inf  # False for NaN
        return Grid(1 / scale, shift, jnp.where(finite, scale, jnp.nan), zero)
    low_code, high_code = limits(bits, symmetric, dtype)
    top = np.float32(high_code if symmetric else high_code - low_code)
    low, extent = jnp.float32(0), jnp.abs(x).max(1, keepdims=True)
    if not symmetric:
        low = jnp.minimum(x.min(1, keepdims=True), 0)
        extent = jnp.maximum(x.max(1, keepdims=True), 0) - low
    finite = extent <= min(float(top) * 2.0**125, FLOAT32_MAX)  # False for NaN
    extent = jnp.where(finite, jnp.maximum(extent, TINY), 1)
    inverse = jnp.where(finite, top / extent, 0)
    scale = jnp.where(finite, extent * (1 / top), jnp.nan)
    if symmetric:
        return Grid(inverse, np.float32(0), scale, None)
    shift = jnp.where(finite, low_code - jnp.round(low * inverse), 0)
    return Grid(inverse, shift, scale, shift.astype(jnp.int8))


def coded(
    x: jax.Array, on: Grid, *, bits: int, symmetric: bool, dtype: DTypeLike, with_sum: bool, **_: Any
) -> Result:
    """The codes of float32 rows on a grid."""
    levels = x * on.inverse
    levels = jnp.where(jnp.isnan(levels), 0, levels)
    rounded = (
        jnp.round(levels) if dtype == jnp.int8 else levels
    )  # the conversion to float8 rounds half to even
    codes = jnp.clip(rounded + on.shift, *limits(bits, symmetric, dtype)).astype(dtype)
    return codes, on.scale, on.zero, codes.sum(1, dtype=jnp.int32, keepdims=True) if with_sum else None


def limits(bits: int, symmetric: bool, dtype: DTypeLike) -> tuple[int, int]:
    """The lowest and the highest code."""
    high = 2 ** (bits - 1) - 1 if dtype == jnp.int8 else FLOAT8_MAX
    return -high if symmetric else -high - 1, high
