"""A toy network that runs in NumPy float64, in JAX and in PyTorch, and what every sampler test needs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.sampling.sample import Sampler, sample, sample_keys

SHAPE = (3, 5, 4)  # rows, columns, channels; channels last
BATCH = 2


class Toy:
    """out = x A + 0.3 tanh(x W + t u + b), with c or 2c channels; A is near the identity.

    Like noise predicted from a noisy state: samples stay of order one, and no error hides behind their size.
    """

    def __init__(self, out_channels: int = SHAPE[-1], seed: int = 0):
        rng, c = np.random.default_rng(seed), SHAPE[-1]
        self.a = (np.eye(c, out_channels) + 0.05 * rng.standard_normal((c, out_channels))).astype(np.float32)
        self.w = (rng.standard_normal((c, out_channels)) / np.sqrt(c)).astype(np.float32)
        self.u = (rng.standard_normal(out_channels) / 1000).astype(np.float32)
        self.b = (0.1 * rng.standard_normal(out_channels)).astype(np.float32)

    def numpy(self, x: np.ndarray, t: float) -> np.ndarray:
        """In float64."""
        a, w, u, b = (v.astype(np.float64) for v in (self.a, self.w, self.u, self.b))
        return x @ a + 0.3 * np.tanh(x @ w + t * u + b)

    def jax(self, x: jax.Array, t: jax.Array, i: jax.Array) -> jax.Array:
        """As `denoise`."""
        return x @ self.a + 0.3 * jnp.tanh(x @ self.w + t[:, None, None, None] * self.u + self.b)

    def torch(self, x: Any, t: Any) -> Any:
        """In float32."""
        import torch

        a, w, u, b = (torch.from_numpy(v) for v in (self.a, self.w, self.u, self.b))
        return x @ a + 0.3 * torch.tanh(x @ w + t * u + b)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="session")
def toy_with_variance() -> Toy:
    return Toy(2 * SHAPE[-1])


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((BATCH, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="session")
def start(noise: np.ndarray) -> jax.Array:
    """The noise as a JAX array."""
    return jnp.asarray(noise)


@pytest.fixture(scope="session")
def keys() -> jax.Array:
    return sample_keys(0, 0, BATCH)


@pytest.fixture(scope="session")
def step_noise(keys: jax.Array) -> Callable[[int], np.ndarray]:
    """What the samplers draw in step i, stated anew: normal(fold_in(key of the sample, i + 1))."""

    def draw(i: int) -> np.ndarray:
        return np.stack([jax.random.normal(jax.random.fold_in(key, i + 1), SHAPE) for key in keys])

    return draw


@pytest.fixture(scope="session")
def run(noise: np.ndarray, keys: jax.Array) -> Callable[..., np.ndarray]:
    """The samples of a toy as float64."""

    def samples(toy: Toy, sampler: Sampler, steps: int) -> np.ndarray:
        made = jax.jit(lambda x, k: sample(toy.jax, sampler, x, k, steps=steps))(noise, keys)
        assert made.dtype == jnp.float32
        return np.asarray(made, np.float64)

    return samples


@pytest.fixture(scope="session")
def distance() -> Callable[[Any, Any], float]:
    """Largest difference, relative to the largest reference value."""
    return lambda found, wanted: float(np.abs(found - wanted).max() / np.abs(wanted).max())
