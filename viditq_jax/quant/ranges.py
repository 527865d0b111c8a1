"""Parameters that change over the denoising steps.

Ranges are cut at rising times: of the bounds (501,) range 0 has t <= 500 and range 1 t >= 501. `PerRange` may
stand for any value of a weight slot, or for the whole of it, and `ByRange` for weights that differ in more
than their numbers, as in bits; `at_range` chooses before the model is called, inside the compiled sampling
loop, so that the model sees nothing of it.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from viditq_jax.net import Net
from viditq_jax.nn.linear import linear

NO_RANGE = (
    "a layer whose parameters change over the denoising ranges was called without a range; choose one by"
    " at_range(net, r). If it runs once per prompt, give its rule no ranges."
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerRange:
    """A value a range: a pytree whose arrays have a leading axis of ranges."""

    stacked: Any

    @classmethod
    def of(cls, values: Sequence[Any]) -> "PerRange":
        """The values, from range 0 on; all of the same structure and shapes."""
        return cls(jax.tree.map(lambda *leaves: jnp.stack(leaves), *values))

    def at(self, r: Any) -> Any:
        """The value of one range; r may be traced."""
        return jax.tree.map(lambda leaf: leaf[r], self.stacked)

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the value of one range."""
        return tuple(jax.eval_shape(lambda value: value.at(0), self).shape)

    def linear(self, x: Any, bias: Any, after: Any = None) -> Any:
        """Refused: a layer cannot know the range."""
        raise ValueError(NO_RANGE)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByRange:
    """Weights of one slot, all of them resident, and which of them serves each range."""

    values: tuple[Any, ...]
    index: tuple[int, ...] = dataclasses.field(metadata={"static": True})  # a value's number, from range 0 on

    def at(self, r: Any) -> Any:
        """The weight of one range; where r is traced, one that chooses when it multiplies."""
        if isinstance(r, (int, np.integer)):
            return self.values[self.index[r]]
        return Chosen(self.values, jnp.asarray(self.index)[r])

    @property
    def shape(self) -> tuple[int, ...]:
        """That of each value."""
        return tuple(self.values[0].shape)

    def linear(self, x: Any, bias: Any, after: Any = None) -> Any:
        """Refused: a layer cannot know the range."""
        raise ValueError(NO_RANGE)


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
    """A weight in a slot that is one of several, by a traced number. Not a pytree."""

    values: tuple[Any, ...]
    number: Any

    def linear(self, x: Any, bias: Any, after: Any) -> Any:
        """What the chosen weight computes."""
        return jax.lax.switch(
            self.number, [lambda each=each: linear(each, x, bias, after) for each in self.values]
        )

    def inputs(self, x: Any) -> Any:
        """x as the chosen weight prepares it."""
        return jax.lax.switch(self.number, [lambda each=each: each.inputs(x) for each in self.values])


def _is_per_range(node: Any) -> bool:
    return isinstance(node, (PerRange, ByRange))


def per_range(tree: Any) -> list[PerRange | ByRange]:
    """All values that change over the ranges."""
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=_is_per_range) if _is_per_range(leaf)]


def at_range(net: Net, r: Any) -> Net:
    """The Net of one range; r may be traced, which then indexes each value."""

    def choose(_: str, weight: Any) -> Any:
        return jax.tree.map(lambda n: n.at(r) if _is_per_range(n) else n, weight, is_leaf=_is_per_range)

    return net.map_weights(choose)


def weights_change(net: Net) -> bool:
    """Whether whole weights, and not only small vectors, change over the ranges."""
    return any(_is_per_range(weight) for weight in net.weights().values())


def range_index(t: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    """The range of each time: how many bounds are at or below it; int32."""
    return np.searchsorted(np.asarray(bounds), t, side="right").astype(np.int32)


def runs(index: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each run of equal ranges, in order: the range, and the steps."""
    edges = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]
    for start, stop in itertools.pairwise(edges):
        yield int(index[start]), slice(start, stop)
