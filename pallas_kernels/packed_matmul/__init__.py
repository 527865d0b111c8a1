"""int8 x packed 4-bit matrix product with row scales and group scales."""

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, Int32, UInt8

from pallas_kernels import dispatch


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
    out_dtype: DTypeLike = jnp.bfloat16,
    implementation: str | None = None,
) -> Float[Array, "m n"]:
    """The product of dequantized rows, where each run of k / groups inputs has its own weight scale.

    w: codes in [-8, 7], two a byte as `pallas_kernels.packing.pack` stores them. A code stands for
    (code - zero) * scale; an absent zero point is 0. One group is a scale per output channel.

        acc[g] = (x - x_zero)[group g] @ (w - w_zero)[group g].T              int32, exact
        y      = float32(acc[0]) * w_scale[:, 0] + float32(acc[1]) * w_scale[:, 1] + ...
                                                                              float32, groups in ascending
                                                                              order
        return out_dtype(y * x_scale + bias)                                  one rounding

    w_zero: in [-8, 7], so that w - w_zero is itself an int8. w_sum: sums of w - w_zero over each group, used
    with x_zero; computed here where it is needed and not given. An implementation may fuse a product and the
    sum that takes it into one rounding.
    """
    k, groups = 2 * w.shape[1], w_scale.shape[1]
    if x.shape[1] != k or k % groups:
        raise ValueError(
            f"x has rows of {x.shape[1]} codes, w of {k}, in {groups} groups; k must agree and divide by"
            f" the groups."
        )
    operands = dict(x_zero=x_zero, w_zero=w_zero, w_sum=w_sum, bias=bias)
    return dispatch.run(
        "packed_matmul", implementation, x, w, x_scale, w_scale, **operands, out_dtype=out_dtype
    )
