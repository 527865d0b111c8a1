"""int8 x int8 and fp8 x fp8 matrix products with row, column and group scales, zero points and epilogues."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float8e4m3fn, Float32, Int8, Int32

from pallas_kernels import dispatch, epilogue


def scaled_matmul(
    x: Int8[Array, "m k"] | Float8e4m3fn[Array, "m k"],
    w: Int8[Array, "n k"] | Float8e4m3fn[Array, "n k"],
    x_scale: Float32[Array, "#m 1"],
    w_scale: Float32[Array, "#n groups"],
    *,
    x_zero: Int8[Array, "#m 1"] | None = None,
    w_zero: Int8[Array, "#n groups"] | None = None,
    x_sum: Int32[Array, "m groups"] | None = None,
    w_sum: Int32[Array, "n groups"] | None = None,
    bias: Float[Array, " n"] | None = None,
    activation: str | None = None,
    residual: Float[Array, "m n"] | None = None,
    gate: Float[Array, "b n"] | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    implementation: str | None = None,
) -> Float[Array, "m n"]:
    """The product of dequantized rows, from exact integer sums and one rounding at the end.

    A code stands for (code - zero) * scale; an absent zero point is 0. Each run of k / groups inputs has its
    own weight scale and zero point; one group is a scale per output channel.

        acc[g] = (x - x_zero)[group g] @ (w - w_zero)[group g].T               int32, exact
        y      = float32(acc[0]) * w_scale[:, 0] + float32(acc[1]) * w_scale[:, 1] + ...
                                                                               float32, in this order
        y      = (y * x_scale) + bias                                          float32, in this order
        y      = gelu(y)                                                       float32, if it is asked for
        y      = residual + gate * y, or residual + y without a gate           float32, if there is a residual
        return out_dtype(y)                                                    one rounding

    x, w: both int8, or both float8_e4m3fn. Of float8 there are no zero points, and acc is a float32 sum in
    any order: off by at most (k / groups) * 2**-24 of the sum of |terms|. An implementation whose device
    keeps fewer bits promotes often enough to stay within that.
    x_sum, w_sum: sums of the codes of each row of x and w over each group, used with the zero point of the
    other side; computed here where they are needed and not given. k / groups: at most 131071 int8 codes,
    65793 with one zero point, 33025 with two, so that no sum leaves int32. An implementation may fuse a
    product and the sum that takes it into one rounding.
    activation: None, or "gelu": 0.5 y (1 + tanh(sqrt(2/pi) (y + 0.044715 y^3))), off by at most 2**-21 |y|:
    both tanh and its argument take a few roundings.
    residual, gate: of any float type, used as float32. Row i takes row i // (m / b) of the gate: b images of
    equally many tokens have a row each.
    """
    (_, k), groups = x.shape, w_scale.shape[1]
    if k != w.shape[1] or k % groups:
        raise ValueError(
            f"x has rows of {k} codes, w of {w.shape[1]}, in {groups} groups; k must agree and divide by the"
            f" groups."
        )
    if x.dtype != w.dtype:
        raise ValueError(f"x is {x.dtype} and w is {w.dtype}; quantize both to one of int8, float8_e4m3fn.")
    zeros = (x_zero is not None) + (w_zero is not None)
    if x.dtype != jnp.int8 and zeros:
        raise ValueError(f"zero points were given for {x.dtype}; it is symmetric. Drop them, or take int8.")
    largest = (131071, 65793, 33025)[zeros]
    if x.dtype == jnp.int8 and k // groups > largest:
        raise ValueError(
            f"each sum is over {k // groups} codes; {largest} is the most that int32 holds with {zeros} zero"
            f" points. Use more groups."
        )
    for name, given in (("x_sum", x_sum), ("w_sum", w_sum), ("w_zero", w_zero)):
        if given is not None and given.shape[1] != groups:
            raise ValueError(
                f"{name} has {given.shape[1]} columns; w_scale has {groups} groups, give one for each."
            )
    epilogue.check(x.shape[0], activation, residual, gate)
    operands = dict(x_zero=x_zero, w_zero=w_zero, x_sum=x_sum, w_sum=w_sum, bias=bias)
    after = dict(activation=activation, residual=residual, gate=gate, out_dtype=out_dtype)
    return dispatch.run("scaled_matmul", implementation, x, w, x_scale, w_scale, **operands, **after)
