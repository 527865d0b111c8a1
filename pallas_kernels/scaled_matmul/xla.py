"""scaled_matmul through `lax.dot_general` on int8 codes; fits every device.

Zero points are at most two rank-1 terms on the int32 sums, which XLA fuses with the scales. Integers may wrap
on the way: two's complement brings the true value back, which fits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


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
    x_sum: jax.Array | None,
    w_sum: jax.Array | None,
    bias: jax.Array | None,
    out_dtype: DTypeLike,
) -> jax.Array:
    """See the contract."""
    # Without preferred_element_type the result would be int8: wrapped, and slower.
    acc = lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    if x_zero is not None:
        w_sum = w.sum(1, dtype=jnp.int32, keepdims=True) if w_sum is None else w_sum
        w_sum = w_sum if w_zero is None else w_sum - x.shape[1] * w_zero.astype(jnp.int32)
        acc = acc - x_zero.astype(jnp.int32) * w_sum.T
    if w_zero is not None:
        x_sum = x.sum(1, dtype=jnp.int32, keepdims=True) if x_sum is None else x_sum
        acc = acc - x_sum * w_zero.astype(jnp.int32).T
    y = acc.astype(jnp.float32) * x_scale * w_scale.T
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(out_dtype)
