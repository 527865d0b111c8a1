"""Intervals hold what they promise where the truth is known."""

import numpy as np
import pytest

from viditq_jax.evaluate import Interval, bootstrap

STUDIES, RESAMPLES = 300, 200
# Percentiles of 60 normals are narrower than Student's by sqrt(59/60) and 1.96/2.00, and 200 resamples find
# them by half a percent: 93.8 % instead of 95 %. Of 300 studies that is so up to 3 sqrt(.938 .062 / 300),
# which is 4.2 %.
LEAST, MOST = 0.896, 0.980


def mean_interval(values: np.ndarray, groups, **options: int) -> Interval:
    return bootstrap(lambda i: float(values[i].mean()), groups, **options)


def test_nineteen_of_twenty_intervals_of_a_mean_hold_the_true_mean() -> None:
    """Samples of 60 from a normal with mean 1 and spread 2."""
    random = np.random.default_rng(0)
    held = 0
    for study in range(STUDIES):
        found = mean_interval(random.normal(1, 2, 60), np.zeros(60), resamples=RESAMPLES, seed=study)
        held += found.low <= 1.0 <= found.high
    assert LEAST <= held / STUDIES <= MOST


def test_intervals_of_a_biased_statistic_hold_its_expectation() -> None:
    """|mean|^2 of 4 normals with means 1, 60 samples, as FID's first term: expected is 4 + 4/60. Resamples
    alone lie 4/60 higher again, and would hold it less often.
    """
    random = np.random.default_rng(1)
    expected, held = 4 + 4 / 60, 0
    for study in range(STUDIES):
        x = 1 + random.standard_normal((60, 4))
        found = bootstrap(
            lambda i, x=x: float(np.square(x[i].mean(0)).sum()), np.zeros(60), resamples=RESAMPLES, seed=study
        )
        held += found.low <= expected <= found.high
    assert LEAST <= held / STUDIES <= MOST


def test_groups_keep_their_shares_so_that_their_differences_are_no_noise() -> None:
    """Two prompts far apart, each without spread: nothing varies."""
    values, groups = np.array([0.0, 10.0] * 20), ["apple", "pizza"] * 20
    assert mean_interval(values, groups) == (5.0, 5.0, 5.0)
    together = mean_interval(values, np.zeros(40))
    assert together.high - together.low == pytest.approx(2 * 1.96 * 5 / 40**0.5, rel=0.15)


def test_paired_variants_are_sure_of_a_small_difference() -> None:
    """A shift of 0.1 on samples with a spread of 10, read at the same indices."""
    x = np.random.default_rng(2).normal(0, 10, 100)
    y = x + 0.1
    found = bootstrap(lambda i: float(y[i].mean() - x[i].mean()), np.zeros(100))
    np.testing.assert_allclose(found, 0.1, rtol=1e-9)


def test_an_interval_is_the_same_again_and_lies_around_its_value() -> None:
    x = np.random.default_rng(3).standard_normal(50)
    first = mean_interval(x, np.zeros(50))
    assert first == mean_interval(x, np.zeros(50))
    assert first.value == pytest.approx(x.mean())
    assert first.low < first.value < first.high
    assert first.to_json() == {"value": first.value, "low": first.low, "high": first.high}


def test_one_sample_has_no_interval() -> None:
    with pytest.raises(ValueError, match="no interval can be told"):
        mean_interval(np.array([1.0, 2.0]), ["apple", "pizza"])
