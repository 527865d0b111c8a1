"""Times are taken in turn, and of what a model would do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.bench.timing import LEAST_SAMPLES, Timing, Work, in_a_row, interleaved


class Clock:
    """Time passes only where a work says so."""

    def __init__(self):
        self.now, self.launched = 0.0, []

    def __call__(self):
        return self.now

    def work(self, name, seconds, calls=1):
        def launch(i):
            self.now += seconds(i) if callable(seconds) else seconds
            self.launched.append((name, i))

        return Work(launch, calls)


def test_works_take_turns():
    clock = Clock()
    interleaved({name: clock.work(name, 1.0) for name in "ab"}, samples=4, clock=clock)
    order = [name for name, _ in clock.launched]
    assert order == ["a", "a", "b", "b", *("a", "b") * 4]  # two launches each to compile and to size


def test_a_time_is_of_one_call_whatever_a_launch_holds():
    clock = Clock()
    works = {"one": clock.work("one", 1.0), "five": clock.work("five", 1.0, calls=5)}
    times = interleaved(works, samples=3, clock=clock)
    assert times["one"] == Timing(1.0, 1.0, 1.0, 3)
    assert times["five"].median_s == 0.2


def test_short_works_are_launched_often_enough_for_a_clock():
    """The samples of 2 ms that are the least take 8 launches of 0.25 ms."""
    clock = Clock()
    times = interleaved({"short": clock.work("short", 2**-12)}, samples=1, clock=clock)
    assert len(clock.launched) == 2 + 9  # 2e-3 * 4096 is a little more than 8
    assert times["short"].median_s == 2**-12


def test_inputs_rotate():
    clock = Clock()
    interleaved({"work": clock.work("work", 1.0)}, samples=3, clock=clock)
    assert [i for _, i in clock.launched[2:]] == [0, 1, 2]


def test_no_round_begins_after_the_time_is_over_but_for_the_least_number():
    clock = Clock()
    times = interleaved({"slow": clock.work("slow", 10.0)}, samples=50, seconds=5.0, clock=clock)
    assert times["slow"].samples == LEAST_SAMPLES
    clock = Clock()
    times = interleaved({"slow": clock.work("slow", 1.0)}, samples=50, seconds=9.5, clock=clock)
    assert times["slow"].samples == 10  # the last begins after 9 seconds; compilation does not count


def test_median_least_and_p90_are_told_apart():
    timing = Timing.of([float(i) for i in range(1, 12)])  # 1 to 11
    assert timing == Timing(6.0, 1.0, 10.0, 11)
    assert timing.to_json() == {"median_s": 6.0, "min_s": 1.0, "p90_s": 10.0, "samples": 11}


def test_calls_in_a_row_compute_each_what_one_would():
    pool = [{"x": jax.random.normal(key, (5, 7))} for key in jax.random.split(jax.random.key(0), 3)]

    def gram(item):
        return item["x"] @ item["x"].T

    work = in_a_row(gram, pool)
    assert work.calls == 3
    for found, item in zip(work.launch(0), pool, strict=True):
        np.testing.assert_allclose(found, gram(item), rtol=1e-5, atol=1e-6)


def test_calls_in_a_row_are_not_merged():
    """Three equal products stay three dots in what XLA compiles."""
    pool = [jnp.ones((64, 64)) * i for i in range(3)]
    work = in_a_row(lambda x: x @ x, pool)
    text = jax.jit(lambda pool: work.launch(0)).lower(pool).as_text()
    assert text.count("stablehlo.dot_general") == 3
    assert text.count("optimization_barrier") == 2


@pytest.mark.parametrize("samples", [1, 3])
def test_every_work_has_as_many_samples(samples):
    works = {name: in_a_row(jnp.sin, [jnp.ones(4)]) for name in "abc"}
    assert {timing.samples for timing in interleaved(works, samples=samples).values()} == {samples}
