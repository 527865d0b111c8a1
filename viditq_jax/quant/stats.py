"""What calibration remembers of a layer's inputs: a monoid, so it can be batched, resumed and added to.

Letters: k inputs of the layer, r ranges of denoising times. `merge` is associative; it commutes but for the
moving average, which depends on the order of the calls, as in the released code.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from viditq_jax.net import Net

TINY = np.float32(1e-30)  # inputs that are all zero have the incoherence 0
DECAY = np.float32(0.95)  # of the released code, whatever its configuration says


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moving:
    """Exponential average of what each call saw: the first as it is, then 0.95 old + 0.05 new.

    Kept as first * 0.95^calls + sum, with the first also in the sum: so two averages merge into the average
    of all calls of one, then of the other.
    """

    first: Any  # [r k] float32
    sum: Any  # [r k] float32
    calls: Any  # [r] float32

    @property
    def value(self) -> Float[Array, "r k"]:
        """The average after all calls."""
        return self.first * DECAY ** self.calls[:, None] + self.sum

    def update(self, value: Float[Array, " k"], r: Any) -> "Moving":
        """One call more, in range r."""
        fresh = (self.calls[r] == 0)[..., None]
        return Moving(
            self.first.at[r].set(jnp.where(fresh, value, self.first[r])),
            self.sum.at[r].set(DECAY * self.sum[r] + (1 - DECAY) * value),
            self.calls.at[r].add(1),
        )

    def merge(self, later: "Moving") -> "Moving":
        """The average of the calls of both, in this order."""
        return Moving(
            jnp.where((self.calls == 0)[:, None], later.first, self.first),
            self.sum * DECAY ** later.calls[:, None] + later.sum,
            self.calls + later.calls,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerStats:
    """The inputs of one layer, in each range; all float32.

    `low`, `high` and what is made of them are None once a rotation has mixed the channels.
    """

    low: Any  # [r k] smallest value; infinity where no row was seen
    high: Any  # [r k] largest value; minus infinity where no row was seen
    total: Any  # [r k] sum of |x|
    count: Any  # [r] rows; a float, so that long calibrations do not wrap
    initial: Any  # [k] largest |x| in the first denoising step
    moving: Moving  # of the largest |x| over the tokens of a sample, averaged over the samples of a call
    gram: Any  # [k k] X^T X over the rows of all ranges; None unless asked for

    @classmethod
    def empty(cls, k: int, ranges: int = 1, *, gram: bool = False) -> "LayerStats":
        """The statistics of no rows: the neutral element of merge."""
        zeros, none = jnp.zeros((ranges, k), jnp.float32), jnp.zeros(ranges, jnp.float32)
        return cls(
            jnp.full((ranges, k), jnp.inf, jnp.float32),
            jnp.full((ranges, k), -jnp.inf, jnp.float32),
            zeros,
            none,
            jnp.zeros(k, jnp.float32),
            Moving(zeros, zeros, none),
            jnp.zeros((k, k), jnp.float32) if gram else None,
        )

    @property
    def absmax(self) -> Float[Array, "r k"]:
        """Largest |x| of each channel."""
        return jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))

    @property
    def mean(self) -> Float[Array, "r k"]:
        """Mean |x| of each channel."""
        return self.total / self.count[:, None]

    @property
    def incoherence(self) -> Float[Array, " r"]:
        """Largest |x| over mean |x| of the whole input. Source: ViDiT-Q, section 3 (a group is a tensor)."""
        return self.absmax.max(1) / jnp.maximum(self.mean.mean(1), TINY)

    def update(self, x: Float[Array, "... k"], r: Any = 0, initial: Any = False) -> "LayerStats":
        """These statistics with the rows of x added.

        x: its first axis counts samples. r: the range, or slice(None) for inputs that every range sees alike.
        initial: whether this is the first denoising step. Both may be traced.
        """
        samples = x.reshape(x.shape[0] if x.ndim > 1 else 1, -1, x.shape[-1]).astype(jnp.float32)
        rows = samples.reshape(-1, x.shape[-1])
        size = jnp.abs(samples)
        largest = size.max((0, 1))
        gram = self.gram
        if gram is not None:
            gram = gram + jnp.einsum("mk,ml->kl", rows, rows, precision=jax.lax.Precision.HIGHEST)
        return LayerStats(
            self.low.at[r].min(rows.min(0)),
            self.high.at[r].max(rows.max(0)),
            self.total.at[r].add(size.sum((0, 1))),
            self.count.at[r].add(rows.shape[0]),
            jnp.where(initial, jnp.maximum(self.initial, largest), self.initial),
            self.moving.update(size.max(1).mean(0), r),
            gram,
        )

    def merge(self, later: "LayerStats") -> "LayerStats":
        """The statistics of the rows of both."""
        return LayerStats(
            jnp.minimum(self.low, later.low),
            jnp.maximum(self.high, later.high),
            self.total + later.total,
            self.count + later.count,
            jnp.maximum(self.initial, later.initial),
            self.moving.merge(later.moving),
            None if self.gram is None or later.gram is None else self.gram + later.gram,
        )

    def at(self, r: int) -> "LayerStats":
        """Those of one range alone; the Gram matrix and the first step are of all."""
        low, high, total, count = (part[r : r + 1] for part in (self.low, self.high, self.total, self.count))
        return LayerStats(
            low,
            high,
            total,
            count,
            self.initial,
            jax.tree.map(lambda a: a[r : r + 1], self.moving),
            self.gram,
        )

    def through(self, step: Any) -> "LayerStats":
        """Those of `step.inputs(x)`, where the rows of x have these."""
        gram = None if self.gram is None else step.inputs(step.inputs(self.gram).T)
        if not step.elementwise or self.low is None:
            return dataclasses.replace(jax.tree.map(lambda _: None, self), gram=gram)
        moving = Moving(step.inputs(self.moving.first), step.inputs(self.moving.sum), self.moving.calls)
        low, high, total = (step.inputs(part) for part in (self.low, self.high, self.total))
        return LayerStats(low, high, total, self.count, step.inputs(self.initial), moving, gram)


Stats = dict[str, LayerStats]
"""Statistics of layers by their path; a layer whose inputs were never seen is absent."""


def merge_stats(a: Stats, b: Stats) -> Stats:
    """The statistics of what either has seen."""
    both = {path: _merged(a[path], b[path]) for path in a.keys() & b.keys()}
    return {path: both.get(path) or a.get(path) or b[path] for path in sorted(a.keys() | b.keys())}


_merged = jax.jit(LayerStats.merge)  # one program a shape, and not one for each operation and layer


def abstract_stats(net: Net, ranges: int = 1) -> Stats:
    """The shapes of the statistics of every linear layer of an unquantized Net, Gram matrices included."""
    return {
        path: jax.eval_shape(partial(LayerStats.empty, weight.shape[1], ranges, gram=True))
        for path, weight in net.weights().items()
    }
