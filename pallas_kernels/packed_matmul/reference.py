"""packed_matmul as its contract reads, one group after the other in int32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from pallas_kernels.packing import unpack


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None,
    w_zero: jax.Array | None,
    bias: jax.Array | None,
    out_dtype: DTypeLike,
    **_sums: Any,
) -> jax.Array:
    """See the contract."""
    x = x.astype(jnp.int32) if x_zero is None else x.astype(jnp.int32) - x_zero
    codes = unpack(w).astype(jnp.int32)
    y = jnp.zeros((x.shape[0], w.shape[0]), jnp.float32)
    for g, columns in enumerate(np.split(np.arange(x.shape[1]), w_scale.shape[1])):
        group = codes[:, columns] if w_zero is None else codes[:, columns] - w_zero[:, g : g + 1]
        y = y + (x[:, columns] @ group.T).astype(jnp.float32) * w_scale[:, g]
    y = y * x_scale
    return (y if bias is None else y + bias.astype(jnp.float32)).astype(out_dtype)
