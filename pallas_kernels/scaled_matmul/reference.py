"""scaled_matmul as its contract reads: zero points are subtracted before the product, so no sum is needed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels import epilogue


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None,
    w_zero: jax.Array | None,
    bias: jax.Array | None,
    activation: str | None,
    residual: jax.Array | None,
    gate: jax.Array | None,
    out_dtype: DTypeLike,
    **_sums: Any,
) -> jax.Array:
    """See the contract."""
    exact = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    x, w = x.astype(exact), w.astype(exact)
    x = x if x_zero is None else x - x_zero
    y = jnp.zeros((x.shape[0], w.shape[0]), jnp.float32)
    for g, columns in enumerate(np.split(np.arange(x.shape[1]), w_scale.shape[1])):
        group = w[:, columns] if w_zero is None else w[:, columns] - w_zero[:, g : g + 1]
        acc = jnp.matmul(x[:, columns], group.T, precision=lax.Precision.HIGHEST)
        y = y + acc.astype(jnp.float32) * w_scale[:, g]
    y = y * x_scale
    y = y if bias is None else y + bias.astype(jnp.float32)
    return epilogue.apply(y, activation, residual, gate).astype(out_dtype)
