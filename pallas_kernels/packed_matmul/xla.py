"""packed_matmul through int8 `lax.dot_general`; fits every device.

The zero point goes into the unpacked code, which stays an int8. One group is one dot. Several groups are a
scan that keeps one float32 [m, n]. Measured at group 64 (jax 0.10.2, 2-core Xeon with VNNI): a batched dot,
which writes float32 [groups, m, n], is 2 to 8 times slower; an unrolled loop is up to 2 times slower at 256
rows and more, and compiles a dot a group.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.packing import unpack


def unsupported(*_: Any, **__: Any) -> str | None:
    """Nothing is."""
    return None


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None,
    w_zero: jax.Array | None,
    w_sum: jax.Array | None,
    bias: jax.Array | None,
    out_dtype: DTypeLike,
) -> jax.Array:
    """See the contract."""
    groups = w_scale.shape[1]
    codes = unpack(w).reshape(w.shape[0], groups, -1).swapaxes(0, 1)  # [groups, n, k]
    if w_zero is not None:
        codes = codes - w_zero.T[:, :, None]
    inputs = x.reshape(x.shape[0], groups, -1).swapaxes(0, 1)  # [groups, m, k]
    scales = w_scale.T[:, None, :]
    if x_zero is None:
        offsets = jnp.zeros((groups, 1, 1), jnp.int32)
    else:
        w_sum = codes.sum(2, dtype=jnp.int32).T if w_sum is None else w_sum
        offsets = w_sum.T[:, None, :]
    zero = jnp.int32(0) if x_zero is None else x_zero.astype(jnp.int32)

    def partial_product(group: tuple[jax.Array, ...]) -> jax.Array:
        a, b, scale, offset = group
        acc = lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
        return (acc - zero * offset).astype(jnp.float32) * scale

    operands = (inputs, codes, scales, offsets)
    if groups == 1:
        y = partial_product(tuple(operand[0] for operand in operands))
    else:
        start = jnp.zeros((x.shape[0], w.shape[0]), jnp.float32)
        y, _ = lax.scan(lambda y, group: (y + partial_product(group), None), start, operands)
    y = y * x_scale
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(out_dtype)
