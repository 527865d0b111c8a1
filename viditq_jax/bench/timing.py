"""Times that can be compared: taken in turn, A B C A B C ..., so that a slow minute of the machine slows all.

A sample is the wall time from the launch until the results are there, of so many launches that a clock can
tell; compilation and the first call are outside. Inputs rotate through a pool, and are random: a repeated
input lies in a cache, and zeros are faster than numbers.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

LEAST_SAMPLES = 3
_SAMPLE_S = 2e-3  # a sample is no shorter: far above the clock's grain and the wait for an idle device
_MOST_LAUNCHES = 64


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call: of all samples the median, the least, and what nine of ten stay below."""

    median_s: float
    min_s: float
    p90_s: float
    samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Timing":
        """That of these samples."""
        median, least, p90 = (float(np.quantile(samples, q)) for q in (0.5, 0.0, 0.9))
        return cls(median, least, p90, len(samples))

    def to_json(self) -> dict[str, float]:
        """The fields of a record, with six digits."""
        return {name: float(f"{value:.6g}") for name, value in dataclasses.asdict(self).items()} | {
            "samples": self.samples
        }


@dataclasses.dataclass(frozen=True)
class Work:
    """Something to time. launch(i) begins it with input i of a pool and gives results to wait for.

    calls: how often one launch does what a time is asked of.
    """

    launch: Callable[[int], Any]
    calls: int = 1


def interleaved(
    works: Mapping[str, Work],
    *,
    samples: int,
    seconds: float = math.inf,
    clock: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """The time of one call of each work. Each is launched once before, to compile and to size the samples.

    samples: of each work. seconds: after compilation; no round begins later, once there are LEAST_SAMPLES.
    clock: gives seconds; the system's where not given.
    """
    clock = clock or time.perf_counter
    queued = jax.default_backend() != "cpu"  # an accelerator takes launches in order; a CPU would mix them

    def sample(work: Work, first: int, launches: int) -> float:
        begun = clock()
        for i in range(first, first + launches):
            result = work.launch(i)  # the one before is freed when it is done
            if not queued or i == first + launches - 1:
                jax.block_until_ready(result)
        return clock() - begun

    launches: dict[str, int] = {}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for name, work in works.items():
        sample(work, 0, 1)  # compiles
        once = max(sample(work, 1, 1), 1e-9)
        launches[name] = min(_MOST_LAUNCHES, max(1, math.ceil(_SAMPLE_S / once)))
    started = clock()
    for turn in range(samples):
        if turn >= LEAST_SAMPLES and clock() - started > seconds:
            break
        for name, work in works.items():
            count = launches[name]
            taken[name].append(sample(work, turn * count, count) / (count * work.calls))
    return {name: Timing.of(times) for name, times in taken.items()}


def in_a_row(fn: Callable[[Any], Any], pool: Sequence[Any]) -> Work:
    """fn of every item of the pool in one program, one after the other.

    One launch of many calls, as in a model: neither the way from Python to the device nor the gap between
    two programs is timed. No call begins before the one before has ended, and none is merged with another.
    """

    @jax.jit
    def chain(pool: Sequence[Any]) -> list[Any]:
        results: list[Any] = []
        for item in pool:
            if results:
                item, results[-1] = jax.lax.optimization_barrier((item, results[-1]))
            results.append(fn(item))
        return results

    return Work(lambda i: chain(pool), len(pool))
