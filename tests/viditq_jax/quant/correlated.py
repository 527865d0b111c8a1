"""A weight and inputs that predict each other, as those of a network do."""

import jax
import jax.numpy as jnp
import numpy as np


def correlated(n: int = 8, k: int = 64, rows: int = 256, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """A weight [n k] and the Gram matrix [k k] of `rows` inputs whose covariance has eigenvalues 1/i."""
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.normal(size=(k, k)))
    x = rng.normal(size=(rows, k)) / np.sqrt(1 + np.arange(k)) @ directions.T * rng.lognormal(0, 0.5, k)
    weight = rng.standard_t(5, size=(n, k)) / np.sqrt(k)
    return jnp.asarray(weight, jnp.float32), jnp.asarray(x.T @ x, jnp.float32)
