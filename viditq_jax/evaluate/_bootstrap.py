"""How sure a figure is: intervals by the bootstrap. Source: Efron and Tibshirani, 1993, chapters 10, 13."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Interval(NamedTuple):
    """A figure, and the ends of its interval of confidence."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """By name."""
        return self._asdict()


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " n"]], float],
    groups: Sequence[object] | np.ndarray,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The statistic of all samples, and where `level` of its values lie over resamples of the same size.

    statistic: of samples by their indices. One that reads several variants at the same indices is paired.
    groups: that of each sample, such as its prompt. Samples are drawn again within their group, so that all
        groups keep their share: the prompts are fixed, and what varies is the noise. One group for all where
        samples are alike.
    The mean of the resamples is moved onto the value: a statistic that is biased in small samples, as FID is,
    is as biased at the value, and is more so in resamples, which repeat samples.
    Raises ValueError for a group of one sample, which has no spread.
    """
    _, labels, counts = np.unique(np.asarray(groups).astype(str), return_inverse=True, return_counts=True)
    if not len(labels) or counts.min() < 2:
        raise ValueError(
            f"there are {len(labels)} samples in {len(counts)} groups, and one has fewer than 2: no interval "
            f"can be told. Give at least 2 samples a group."
        )
    random = np.random.default_rng(seed)
    members = np.argsort(labels, kind="stable")
    ends = np.cumsum(counts)
    start, size = np.repeat(ends - counts, counts), np.repeat(counts, counts)
    value = float(statistic(np.arange(len(labels))))
    found = np.array(
        [
            statistic(members[start + (random.random(len(labels)) * size).astype(int)])
            for _ in range(resamples)
        ]
    )
    tail = 50 * (1 - level)
    low, high = np.percentile(found - (found.mean() - value), [tail, 100 - tail])
    return Interval(value, float(low), float(high))
