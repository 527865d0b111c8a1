"""hadamard as its contract reads: one dense product with the whole matrix."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.hadamard._matrices import matrix


def run(x: jax.Array, *, block: int, regular: bool) -> jax.Array:
    """See the contract."""
    h = jnp.asarray(matrix(block, regular), jnp.float32)
    rows = x.astype(jnp.float32).reshape(-1, block)
    y = jnp.matmul(rows, h, precision=jax.lax.Precision.HIGHEST) * np.float32(1 / math.sqrt(block))
    return y.reshape(x.shape)
