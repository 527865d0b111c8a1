"""Rows of floats to int8 codes with a scale each."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels import dispatch


class Rows(NamedTuple):
    """Codes with what turns them back: x is about (codes - zero) * scale."""

    codes: jax.Array  # [m, k] int8
    scale: jax.Array  # [m, 1] float32, or as given
    zero: jax.Array | None  # [m, 1] int8, or as given; None for symmetric codes
    sum: jax.Array | None  # [m, 1] int32, the sum of the codes of a row; None unless asked for


def quantize_rows(
    x: Float[Array, "m k"],
    *,
    bits: int = 8,
    symmetric: bool = True,
    scale: Float32[Array, "#m 1"] | None = None,
    zero: Int8[Array, "#m 1"] | None = None,
    with_sum: bool = False,
    implementation: str | None = None,
) -> Rows:
    """Each row of x as integers and one scale; rows do not influence each other.

    All arithmetic is in float32, with tiny = 1e-30; `round` is half to even.

        symmetric:   top   = 2**(bits-1) - 1              codes in [-top, top]
                     range = max(max |x|, tiny)
                     codes = clip(round(x * (top / range)))
                     scale = range * (1 / top)
        asymmetric:  top   = 2**bits - 1                  codes in [-2**(bits-1), 2**(bits-1) - 1]
                     low, high = min(0, min x), max(0, max x)
                     range = max(high - low, tiny)
                     zero  = -2**(bits-1) - round(low * (top / range))
                     codes = clip(round(x * (top / range)) + zero)
                     scale = range * (1 / top)
        static:      codes = clip(round(x * (1 / scale)) + zero)    with the scale, and zero, that are given

    A row of zeros gives the codes of zero and a finite scale. A row whose range is NaN or infinite gives the
    codes 0 and the scale NaN, so what is computed from it is NaN. Static codes saturate; a NaN becomes the
    code of zero.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"codes of {bits} bits do not exist here; choose 2 to 8.")
    if zero is not None and (symmetric or scale is None):
        raise ValueError("a zero point was given; it goes with a given scale and symmetric=False.")
    if scale is not None and not symmetric and zero is None:
        raise ValueError("a scale was given for asymmetric codes; give its zero point too.")
    options = dict(bits=bits, symmetric=symmetric, scale=scale, zero=zero, with_sum=with_sum)
    return Rows(*dispatch.run("quantize_rows", implementation, x, **options))
