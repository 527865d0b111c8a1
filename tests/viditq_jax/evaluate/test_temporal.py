"""Measures of motion, on videos whose motion is known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from viditq_jax.evaluate.flicker import flicker
from viditq_jax.evaluate.frame_consistency import frame_consistency
from viditq_jax.evaluate.motion_error import METRIC, motion_error
from viditq_jax.evaluate.ssim import ssim
from viditq_jax.evaluate.warping_error import warping_error

TEXTURE = gaussian_filter(np.random.default_rng(0).standard_normal((96, 96)), 3)
TEXTURE = (255 * (TEXTURE - TEXTURE.min()) / np.ptp(TEXTURE)).astype(np.uint8)


def moving(right: int, down: int = 0, frames: int = 4, enlarge: int = 1) -> np.ndarray:
    """A window of 64 pixels on a texture that moves by so many pixels a frame."""
    windows = [TEXTURE[16 - down * i : 80 - down * i, 16 - right * i : 80 - right * i] for i in range(frames)]
    video = np.stack(windows)[..., None].repeat(3, axis=-1)
    return video.repeat(enlarge, axis=1).repeat(enlarge, axis=2)


def test_motion_error_is_the_distance_of_two_motions_in_pixels() -> None:
    """Flow is good to a twentieth of a pixel inside; at the border texture comes in, hence 5 in 100."""
    assert motion_error(moving(2), moving(2)) == 0
    assert motion_error(moving(2), moving(-1)) == pytest.approx(3, rel=0.05)
    assert motion_error(moving(0, 3), moving(4)) == pytest.approx(5, rel=0.05)


def test_noise_is_no_motion() -> None:
    """Of 4 levels, as of a coarse quantization: the flow of a window of 15 pixels hardly feels it."""
    noise = np.random.default_rng(2).normal(0, 4, moving(2).shape)
    noisy = (moving(2) + noise).clip(0, 255).astype(np.uint8)
    assert motion_error(noisy, moving(2)) < 0.1


def test_motion_of_large_videos_is_told_in_their_own_pixels() -> None:
    """Frames of 256 pixels are halved before the flow is computed."""
    assert motion_error(moving(2, enlarge=4), moving(-1, enlarge=4)) == pytest.approx(12, rel=0.05)


def test_flat_places_do_not_count_as_motion() -> None:
    flat = np.full((3, 32, 32, 3), 200, np.uint8)
    assert motion_error(flat, flat) == 0


def test_flicker_is_the_change_of_the_error() -> None:
    """An error of 7 at rest has none; one of 6 in every other frame changes by 6 each time."""
    video = moving(1).clip(20, 200)
    assert flicker(video + np.uint8(7), video) == 0
    restless = video.copy()
    restless[1::2] += 6
    assert flicker(restless, video) == pytest.approx(6, abs=1e-5)


def test_warping_error_is_small_along_the_motion_and_large_across_it() -> None:
    """A video that moves the other way than the reference changes as much as if it jumped."""
    along, across = warping_error(moving(2), moving(2)), warping_error(moving(-2), moving(2))
    assert along < 1
    assert across > 10 * along
    noise = np.random.default_rng(1).integers(0, 21, moving(2).shape).astype(np.uint8)
    video = moving(2).clip(0, 230)
    # Two draws of 0 to 20 are 7 apart in the mean; reading between pixels evens some of it out.
    assert 4 < warping_error(video + noise, video) < 7.3


def test_frame_consistency_is_that_of_successive_frames() -> None:
    still = moving(0)
    assert frame_consistency(still) == 1
    by_hand = np.mean([ssim(a, b) for a, b in zip(moving(2)[1:], moving(2)[:-1], strict=True)])
    assert frame_consistency(moving(2)) == pytest.approx(by_hand)
    assert frame_consistency(moving(1)) > frame_consistency(moving(3))


def test_temporal_measures_are_means_over_videos() -> None:
    pairs = [(moving(2), moving(1)), (moving(3), moving(1))]
    one, two = (METRIC.update(METRIC.empty(), *pair) for pair in pairs)
    assert METRIC.finish(METRIC.merge(one, two)) == pytest.approx(np.mean([motion_error(*p) for p in pairs]))


@pytest.mark.parametrize("measure", [flicker, motion_error, warping_error])
def test_one_frame_has_no_motion(measure) -> None:
    with pytest.raises(ValueError, match="videos of at least 2 frames"):
        measure(moving(1)[:1], moving(1)[:1])
