"""int8 x packed 4-bit matrix product with row scales, group scales, zero points and epilogues."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, Int32, UInt8

from pallas_kernels import dispatch, epilogue


def packed_matmul(
    x: Int8[Array, "m k"],
    w: UInt8[Array, "n half"],
    x_scale: Float32[Array, "#m 1"],
    w_scale: Float32[Array, "#n groups"],
    *,
    x_zero: Int8[Array, "#m 1"] | None = None,
    w_zero: Int8[Array, "#n groups"] | None = None,
    w_sum: Int32[Array, "n groups"] | None = None,
    bias: Float[Array, " n"] | None = None,
    activation: str | None = None,
    residual: Float[Array, "m n"] | None = None,
    gate: Float[Array, "b n"] | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    implementation: str | None = None,
) -> Float[Array, "m n"]:
    """The product of dequantized rows: what `scaled_matmul` says of the unpacked codes, in the same order.

    w: codes in [-8, 7], two a byte as `pallas_kernels.packing.pack` stores them.
    w_zero: in [-8, 7], so that w - w_zero is itself an int8. w_sum: sums of w - w_zero (not of w) over each
    group, used with x_zero; computed here where it is needed and not given. k / groups: at most 2097151
    codes, less with zero points, so that no sum leaves int32.
    """
    k, groups = 2 * w.shape[1], w_scale.shape[1]
    if x.shape[1] != k or k % groups:
        raise ValueError(
            f"x has rows of {x.shape[1]} codes, w of {k}, in {groups} groups; k must agree and divide by"
            f" the groups."
        )
    # |x| is at most 128 and |w| at most 8; a zero point on the other side of 0 makes that 255 and 15
    largest = (2**31 - 1) // ((128 if x_zero is None else 255) * (8 if w_zero is None else 15))
    if k // groups > largest:
        raise ValueError(
            f"each sum is over {k // groups} codes; {largest} is the most that int32 holds with these zero"
            f" points. Use more groups."
        )
    epilogue.check(x.shape[0], activation, residual, gate)
    operands = dict(x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias)
    after = dict(activation=activation, residual=residual, gate=gate, out_dtype=out_dtype)
    return dispatch.run("packed_matmul", implementation, x, w, x_scale, w_scale, **operands, **after)
