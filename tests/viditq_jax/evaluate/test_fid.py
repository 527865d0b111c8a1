"""Frechet distance: Gaussians whose distance is known."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from viditq_jax.evaluate.fid import Frechet, Moments, fid, frechet_distance

RNG = np.random.default_rng(0)


def exactly(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments of samples whose mean and unbiased covariance are these."""
    count = 100
    return Moments(count, count * mean, (count - 1) * covariance + count * np.outer(mean, mean))


def test_independent_gaussians_are_apart_by_their_means_and_spreads() -> None:
    """|(3, 4)|^2 + (1 - 2)^2 + (2 - 3)^2 = 27."""
    a = exactly(np.array([1.0, 1.0]), np.diag([1.0, 4.0]))
    b = exactly(np.array([4.0, 5.0]), np.diag([4.0, 9.0]))
    assert frechet_distance(a, b) == pytest.approx(27, abs=1e-11)


def test_covariances_that_do_not_commute_are_the_formula_of_the_paper() -> None:
    """tr(A + B - 2 sqrtm(A B)), by scipy's matrix root."""
    a, b = (m @ m.T + np.eye(6) for m in RNG.standard_normal((2, 6, 6)))
    expected = np.trace(a + b - 2 * sqrtm(a @ b)).real
    zero = np.zeros(6)
    assert frechet_distance(exactly(zero, a), exactly(zero, b)) == pytest.approx(expected, rel=1e-9)


def test_a_set_has_no_distance_to_itself_and_a_shift_adds_its_square() -> None:
    x = RNG.standard_normal((50, 8)) @ RNG.standard_normal((8, 8))
    assert fid(x, x) == pytest.approx(0, abs=1e-7)  # the root of rounding errors of eigenvalues near 0
    assert fid(x + 3.0, x) == pytest.approx(8 * 9, abs=1e-7)


def test_the_distance_of_samples_comes_near_that_of_their_gaussians() -> None:
    """Two normals of 3 features, 1 apart: a bias below d(d + 3)/n, and noise of about 2 sqrt(2/n)."""
    x, y = RNG.standard_normal((2, 20000, 3))
    assert fid(x, y + np.array([1.0, 0, 0])) == pytest.approx(1, abs=0.1)


def features(pictures: list[np.ndarray]) -> np.ndarray:
    """The mean of each colour, and their product."""
    means = np.array([picture.mean((0, 1)) for picture in pictures], np.float32)
    return np.concatenate([means, means.prod(1, keepdims=True) / 1e4], axis=1)


PICTURES = RNG.integers(0, 256, (2, 12, 4, 4, 3), dtype=np.uint8)


def test_streaming_in_any_grouping_gives_the_distance_of_all() -> None:
    metric = Frechet(features)
    states = [metric.update(metric.empty(), a, b) for a, b in zip(*PICTURES, strict=True)]
    left = metric.empty()
    for state in states:
        left = metric.merge(left, state)
    right = metric.empty()
    for state in reversed(states):
        right = metric.merge(state, metric.merge(metric.empty(), right))
    halves = metric.merge(
        metric.merge(states[0], metric.merge(states[1], states[2])),
        metric.merge(metric.merge(metric.merge(states[3], states[4]), states[5]), metric.empty()),
    )
    for state in states[6:]:
        halves = metric.merge(halves, state)
    expected = fid(*(features(list(each)) for each in PICTURES))
    for state in (left, right, halves):
        # Sums in another order differ by rounding, which the roots of the smallest eigenvalues enlarge.
        assert metric.finish(state) == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_features_have_no_distance() -> None:
    x = RNG.standard_normal((8, 8))
    with pytest.raises(ValueError, match="needs at least 9 pictures a set, got 8; make more"):
        fid(x, RNG.standard_normal((20, 8)))
    metric = Frechet(features)
    with pytest.raises(ValueError, match="nothing was measured"):
        metric.finish(metric.empty())
