"""scaled_matmul through `lax.dot_general` on the codes as they are; fits every device.

Zero points are at most two rank-1 terms on the int32 sums, which XLA fuses with the scales. Integers may wrap
on the way: two's complement brings the true value back, which fits.

One group is one dot. Several groups are a scan that keeps one float32 [m, n]. Measured at group 64 (jax
0.10.2, 2-core Xeon with VNNI): a batched dot, which writes float32 [groups, m, n], is 2 to 8 times slower; an
unrolled loop is up to 2 times slower at 256 rows and more, and compiles a dot a group. So groups buy accuracy
with time: 1024x1152x1152 takes 1.9 times as long at group 64 as with one group.

float8: a GPU before sm_89, and every CPU, has no such product. XLA then converts to float32 itself, which
takes the time of a float32 product; converting to bfloat16 here takes longer on the same Xeon. On others,
Precision.HIGHEST is what makes XLA promote the sums of the tensor cores.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import epilogue


def unsupported(*_: Any, **__: Any) -> str | None:
    """Nothing is."""
    return None


def sums(rows: jax.Array, groups: int) -> jax.Array:
    """[rows, columns] -> [rows, groups]: sums of the codes of each group."""
    return rows.reshape(rows.shape[0], groups, rows.shape[1] // groups).sum(2, dtype=jnp.int32)


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None,
    w_zero: jax.Array | None,
    x_sum: jax.Array | None,
    w_sum: jax.Array | None,
    **after: Any,
) -> jax.Array:
    """See the contract."""
    groups = w_scale.shape[1]

    def split(rows: jax.Array) -> jax.Array:  # [rows, columns] -> [groups, rows, columns / groups]
        return rows.reshape(rows.shape[0], groups, rows.shape[1] // groups).swapaxes(0, 1)

    operands = {"x": split(x), "w": split(w), "w_scale": split(w_scale)}
    if x_zero is not None:
        x_zero = x_zero.astype(jnp.int32)
        w_sum = sums(w, groups) if w_sum is None else w_sum
        w_sum = w_sum if w_zero is None else w_sum - x.shape[1] // groups * w_zero.astype(jnp.int32)
        operands["w_sum"] = split(w_sum)
    if w_zero is not None:
        x_sum = sums(x, groups) if x_sum is None else x_sum
        operands |= {"x_sum": split(x_sum), "w_zero": split(w_zero.astype(jnp.int32))}

    def product(group: dict[str, jax.Array]) -> jax.Array:
        # Without preferred_element_type the result would be int8: wrapped, and slower.
        acc = lax.dot_general(
            group["x"],
            group["w"],
            (((1,), (1,)), ((), ())),
            precision=None if x.dtype == jnp.int8 else lax.Precision.HIGHEST,
            preferred_element_type=jnp.int32 if x.dtype == jnp.int8 else jnp.float32,
        )
        if x_zero is not None:
            acc = acc - x_zero * group["w_sum"].T
        if w_zero is not None:
            acc = acc - group["x_sum"] * group["w_zero"].T
        return acc.astype(jnp.float32) * group["w_scale"].T

    if groups == 1:
        y = product({name: operand[0] for name, operand in operands.items()})
    else:
        start = jnp.zeros((x.shape[0], w.shape[0]), jnp.float32)
        y, _ = lax.scan(lambda y, group: (y + product(group), None), start, operands)
    return epilogue.finish(y, x_scale, **after)
