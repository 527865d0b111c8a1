"""The mean of a measure over pairs of pictures or videos, as a monoid: batched, sharded, added to at will."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

Sample = UInt8[np.ndarray, "*t h w 3"]


class State(NamedTuple):
    """Sum of the measure over pairs, and their number."""

    total: float
    pairs: int


@dataclasses.dataclass(frozen=True)
class PairMean:
    """A metric made of a measure of one pair."""

    measure: Callable[[Sample, Any], float]

    def empty(self) -> State:
        """Nothing measured yet."""
        return State(0.0, 0)

    def update(self, state: State, sample: Sample, expected: Sample | str) -> State:
        """Add one pair: a sample and its reference, or its caption."""
        return State(state.total + self.measure(sample, expected), state.pairs + 1)

    def merge(self, a: State, b: State) -> State:
        """Two measurements as one."""
        return State(a.total + b.total, a.pairs + b.pairs)

    def finish(self, state: State) -> float:
        """The mean over all pairs. Raises ValueError if there was none."""
        if not state.pairs:
            raise ValueError("nothing was measured; give at least one pair.")
        return state.total / state.pairs
