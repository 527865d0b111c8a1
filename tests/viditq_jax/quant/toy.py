"""A two-layer model."""

import jax
from flax import nnx

from viditq_jax.net import Net
from viditq_jax.nn.linear import Linear


class Toy(nnx.Module):
    """32 -> 64 -> 16 channels; the second layer sees no negative inputs."""

    def __init__(self, *, rngs):
        self.fc1 = Linear(32, 64, rngs=rngs)
        self.fc2 = Linear(64, 16, rngs=rngs)

    def __call__(self, x):
        return self.fc2(jax.nn.relu(self.fc1(x)))


def toy() -> Net:
    """The same each time."""
    return Net.of(Toy(rngs=nnx.Rngs(0)))
