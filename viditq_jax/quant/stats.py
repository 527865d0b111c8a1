"""What calibration remembers of a layer's inputs: a monoid, so it can be batched, resumed and added to."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from viditq_jax.net import Net


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerStats:
    """Smallest and largest input of each channel over all rows seen, and their number."""

    low: Any  # [k] float32; infinity where no row was seen
    high: Any  # [k] float32; minus infinity where no row was seen
    count: Any  # [] int32, rows

    @classmethod
    def empty(cls, k: int) -> "LayerStats":
        """The statistics of no rows: the neutral element of merge."""
        return cls(jnp.full(k, jnp.inf, jnp.float32), jnp.full(k, -jnp.inf, jnp.float32), jnp.int32(0))

    @property
    def absmax(self) -> Float[Array, " k"]:
        """Largest |x| of each channel."""
        return jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))

    def update(self, x: Float[Array, "... k"]) -> "LayerStats":
        """These statistics with the rows of x added."""
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        return self.merge(LayerStats(rows.min(0), rows.max(0), jnp.int32(rows.shape[0])))

    def merge(self, other: "LayerStats") -> "LayerStats":
        """The statistics of the rows of both."""
        low, high = jnp.minimum(self.low, other.low), jnp.maximum(self.high, other.high)
        return LayerStats(low, high, self.count + other.count)


Stats = dict[str, LayerStats]
"""Statistics of layers by their path; a layer whose inputs were never seen is absent."""


def merge_stats(a: Stats, b: Stats) -> Stats:
    """The statistics of what either has seen."""
    both = {path: a[path].merge(b[path]) for path in a.keys() & b.keys()}
    return {path: both.get(path) or a.get(path) or b[path] for path in sorted(a.keys() | b.keys())}


def abstract_stats(net: Net) -> Stats:
    """The shapes of the statistics of every linear layer of an unquantized Net."""
    return {
        path: jax.eval_shape(partial(LayerStats.empty, weight.shape[1]))
        for path, weight in net.weights().items()
    }
