"""Rows of floats to 8-bit codes with a scale each: integers of 2 to 8 bits, or float8_e4m3fn.

What a layer does to its input before that can be part of the same pass: adaLN's norm and modulation, GELU,
the division by a balance, a block Hadamard transform.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, UInt8

from pallas_kernels import dispatch
from pallas_kernels.hadamard import misfit


class Rows(NamedTuple):
    """Codes with what turns them back: x is about (codes - zero) * scale."""

    codes: jax.Array  # [m, k] int8 or float8_e4m3fn; never NaN
    scale: jax.Array  # [m, 1] float32; NaN for a row that is not finite
    zero: jax.Array | None  # [m, 1] int8, or as given; None for symmetric codes
    sum: jax.Array | None  # [m, 1] int32, the sum of the codes of a row; None unless asked for


def quantize_rows(
    x: Float[Array, "m k"],
    *,
    modulation: tuple[Float[Array, "b k"], Float[Array, "b k"]] | None = None,
    eps: float = 1e-6,
    activation: str | None = None,
    balance: Float[Array, " k"] | None = None,
    signs: UInt8[Array, " bytes"] | None = None,
    block: int | None = None,
    regular: bool = False,
    bits: int = 8,
    symmetric: bool = True,
    dtype: DTypeLike = jnp.int8,
    scale: Float32[Array, "#m 1"] | None = None,
    zero: Int8[Array, "#m 1"] | None = None,
    with_sum: bool = False,
    implementation: str | None = None,
) -> Rows:
    """Each row of x as codes and one scale; rows do not influence each other.

    First x becomes what is quantized, in float32, by those of these steps whose operands are given:

        modulation   (shift, scale), of row group i // (m / b):
                     x = (x - mean) * rsqrt(mean((x - mean)**2) + eps) * (1 + scale) + shift
        activation   "gelu": x = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))
        balance      x = x * (1 / balance); of a modulation without an activation, instead of it,
                     (1 + scale) * (1 / balance) and shift * (1 / balance) take the places of 1 + scale
                     and shift
        signs        x = -x in the channels whose bit is 1; ceil(k / 8) bytes, the first channel highest
        block        x = hadamard(x, block=block, regular=regular), the op; signs and regular go with it

    An implementation may sum, divide and compute tanh in its own way. So after these steps at most 0.1 % of
    its codes - zero are off by one, and its scales by a factor of 1 + 2**-20.

    dtype: int8, for integers of `bits`; or float8_e4m3fn, which has 8 bits, is symmetric, and has no sums.
    All arithmetic is in float32, with tiny = 1e-30; `round` is half to even, to integers or to float8.

        symmetric:   top   = 2**(bits-1) - 1, or 448       codes in [-top, top]
                     range = max(max |x|, tiny)
                     codes = clip(round(x * (top / range)))
                     scale = range * (1 / top)
        asymmetric:  top   = 2**bits - 1                   codes in [-2**(bits-1), 2**(bits-1) - 1]
                     low, high = min(0, min x), max(0, max x)
                     range = max(high - low, tiny)
                     zero  = -2**(bits-1) - round(low * (top / range))
                     codes = clip(round(x * (top / range)) + zero)
                     scale = range * (1 / top)
        static:      codes = clip(round(x * (1 / scale)) + zero)    with the scale, and zero, that are given

    A row of zeros gives the codes of zero and a finite scale. Static codes saturate. A row with a NaN or an
    infinity gets the scale NaN, so what is computed from it is NaN: dynamic codes are then 0, static ones
    those of the other numbers, with NaN as 0. The same holds for a dynamic row whose range is over top *
    2**125, at which 1 / scale leaves the normal numbers (int8 and float8 never get there, 2 bits do at 4e37).
    """
    first = dict(
        modulation=modulation, eps=eps, activation=activation, balance=balance,
        signs=signs, block=block, regular=regular,
    )  # fmt: skip
    _check(x, modulation, activation, balance, signs, block, regular)
    if not 2 <= bits <= 8:
        raise ValueError(f"codes of {bits} bits do not exist here; choose 2 to 8.")
    if dtype not in (jnp.int8, jnp.float8_e4m3fn):
        raise ValueError(f"codes of {jnp.dtype(dtype)} do not exist here; choose int8 or float8_e4m3fn.")
    if dtype == jnp.float8_e4m3fn and (bits != 8 or not symmetric or with_sum):
        raise ValueError(
            f"bits={bits}, symmetric={symmetric}, with_sum={with_sum} were asked of float8_e4m3fn; it has 8"
            f" bits, no zero point, and so no use for sums. Leave these options out, or take int8."
        )
    if zero is not None and (symmetric or scale is None):
        raise ValueError("a zero point was given; it goes with a given scale and symmetric=False.")
    if scale is not None and not symmetric and zero is None:
        raise ValueError("a scale was given for asymmetric codes; give its zero point too.")
    codes = dict(bits=bits, symmetric=symmetric, dtype=dtype, scale=scale, zero=zero, with_sum=with_sum)
    return Rows(*dispatch.run("quantize_rows", implementation, x, **first, **codes))


def _check(
    x: jax.Array,
    modulation: tuple[jax.Array, jax.Array] | None,
    activation: str | None,
    balance: jax.Array | None,
    signs: jax.Array | None,
    block: int | None,
    regular: bool,
) -> None:
    """Refuses operands of the steps before the codes that do not fit x or each other."""
    k = x.shape[1]
    if modulation is not None:
        shift, factor = modulation
        if shift.shape != factor.shape or shift.shape[1] != k or x.shape[0] % shift.shape[0]:
            raise ValueError(
                f"x is {list(x.shape)} and its modulation {list(shift.shape)} and {list(factor.shape)}; give"
                f" shift and scale [b, {k}] with b a divisor of {x.shape[0]}: a row for each sample."
            )
    if activation not in (None, "gelu"):
        raise ValueError(f"activation {activation!r} does not exist here; choose None or 'gelu'.")
    if balance is not None and balance.shape != (k,):
        raise ValueError(f"the balance is {list(balance.shape)}; give a factor for each of {k} channels.")
    if block is None and (signs is not None or regular):
        raise ValueError("signs, or a regular matrix, were asked for; they go with a rotation: give a block.")
    if block is not None and (reason := misfit(k, block, regular)) is not None:
        raise ValueError(f"{reason}.")
    if signs is not None and signs.shape != (-(-k // 8),):
        raise ValueError(f"signs are {list(signs.shape)} bytes; {k} channels need {-(-k // 8)}, a bit each.")
