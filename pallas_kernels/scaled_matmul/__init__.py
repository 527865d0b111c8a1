"""int8 x int8 matrix product with row and column scales and zero points."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, Int32

from pallas_kernels import dispatch


def scaled_matmul(
    x: Int8[Array, "m k"],
    w: Int8[Array, "n k"],
    x_scale: Float32[Array, "#m 1"],
    w_scale: Float32[Array, "#n 1"],
    *,
    x_zero: Int8[Array, "#m 1"] | None = None,
    w_zero: Int8[Array, "#n 1"] | None = None,
    x_sum: Int32[Array, "m 1"] | None = None,
    w_sum: Int32[Array, "n 1"] | None = None,
    bias: Float[Array, " n"] | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    implementation: str | None = None,
) -> Float[Array, "m n"]:
    """The product of dequantized rows, from an exact integer sum and one rounding at the end.

    A code stands for (code - zero) * scale; an absent zero point is 0.

        acc = (x - x_zero) @ (w - w_zero).T                    int32, exact
        y   = ((float32(acc) * x_scale) * w_scale.T) + bias    float32, in this order
        return out_dtype(y)                                    one rounding

    x_sum, w_sum: sums of the codes of each row of x and w, used with the zero point of the other side;
    computed here where they are needed and not given. k: at most 131071, 65793 with one zero point, 33025
    with two, so that no sum leaves int32. An implementation may fuse the last product and `+ bias` into one
    rounding.
    """
    zeros = (x_zero is not None) + (w_zero is not None)
    largest = (131071, 65793, 33025)[zeros]
    if x.shape[1] != w.shape[1] or x.shape[1] > largest:
        raise ValueError(
            f"x has rows of {x.shape[1]} and w of {w.shape[1]} codes; they must agree, and {largest} is the"
            f" most that an int32 sum holds with {zeros} zero points."
        )
    operands = dict(x_zero=x_zero, w_zero=w_zero, x_sum=x_sum, w_sum=w_sum, bias=bias)
    return dispatch.run(
        "scaled_matmul", implementation, x, w, x_scale, w_scale, **operands, out_dtype=out_dtype
    )
