"""FLIP by its authors' package, and clear words without it."""

import sys

import numpy as np
import pytest

from viditq_jax.evaluate.flip import METRIC, flip

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def test_black_and_white_are_as_far_apart_as_can_be() -> None:
    """The authors' scale ends there: pure colours have no larger distance in its error space than 1."""
    pytest.importorskip("flip_evaluator", reason="needs the extra metrics")
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert 0.9 < flip(white, black) <= 1
    assert flip(black, black) == 0


def test_small_errors_are_seen_less_than_large_ones_and_videos_are_means() -> None:
    pytest.importorskip("flip_evaluator", reason="needs the extra metrics")
    close, far = (np.where(PICTURE > 127, PICTURE - d, PICTURE + d).astype(np.uint8) for d in (4, 60))
    assert 0 < flip(close, PICTURE) < flip(far, PICTURE) < 1
    film, still = np.stack([close, PICTURE]), np.stack([PICTURE, PICTURE])
    assert flip(film, still) == pytest.approx(flip(close, PICTURE) / 2, rel=1e-6)
    state = METRIC.update(METRIC.empty(), close, PICTURE)
    state = METRIC.merge(METRIC.update(METRIC.empty(), far, PICTURE), state)
    assert METRIC.finish(state) == pytest.approx((flip(close, PICTURE) + flip(far, PICTURE)) / 2)


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'viditq-jax\[metrics\]'"):
        flip(PICTURE, PICTURE)
