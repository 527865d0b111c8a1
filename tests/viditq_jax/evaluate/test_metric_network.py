"""The packaged metric network reads the drawings of the packaged prompts, and measures by it behave."""

from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.viditq_jax.evaluate.test_evaluate import folder
from viditq_jax import plugins
from viditq_jax.conditions import packaged_prompts
from viditq_jax.evaluate import evaluate
from viditq_jax.evaluate._network import caption_features, perceived, picture_features
from viditq_jax.evaluate.alignment import alignment, cosine_score
from viditq_jax.evaluate.fid import fid
from viditq_jax.evaluate.perceptual import perceptual
from viditq_jax.quality import real_pictures

PROMPTS = packaged_prompts()
REAL = real_pictures()
APPLE, PIZZA = REAL["red apple"][0], REAL["pizza"][0]


def noisy(picture: np.ndarray, spread: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, spread, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_the_package_is_small_and_has_its_card() -> None:
    package = resources.files("viditq_jax.assets") / "metric"
    assert sum(len(file.read_bytes()) for file in package.iterdir()) < 3_000_000
    card = (package / "CARD.md").read_text(encoding="utf-8")
    assert "caption of a held-out picture" in card
    assert "**Not** the FID of papers" in card


def test_drawings_find_their_prompts() -> None:
    """128 drawings, 16 prompts: a network that knew nothing would find 8."""
    pictures = np.concatenate([REAL[prompt] for prompt in PROMPTS])
    seen, said = picture_features(pictures), caption_features(PROMPTS)
    scores = seen @ (said / np.linalg.norm(said, axis=1, keepdims=True)).T
    truth = np.repeat(np.arange(16), 8)
    assert (scores.argmax(1) == truth).mean() >= 0.9


def test_features_do_not_depend_on_what_else_is_in_the_batch() -> None:
    many = picture_features(np.concatenate([REAL["pizza"], REAL["fox"]]))
    # The same sums in the same order but for how a product of 8 rows is cut: float32 rounding.
    np.testing.assert_allclose(picture_features([PIZZA]), many[:1], rtol=1e-4, atol=1e-4)


def test_perceptual_distance_is_a_distance_that_grows_with_noise_and_blur() -> None:
    assert perceptual(APPLE, APPLE) == 0
    assert perceptual(APPLE, PIZZA) == pytest.approx(perceptual(PIZZA, APPLE), rel=1e-6)
    by_noise = [perceptual(noisy(APPLE, spread), APPLE) for spread in (1, 4, 16, 64)]
    assert by_noise == sorted(by_noise)
    blurred = [
        perceptual(np.asarray(Image.fromarray(APPLE).filter(ImageFilter.GaussianBlur(radius))), APPLE)
        for radius in (0.5, 1, 2)
    ]
    assert blurred == sorted(blurred)
    assert by_noise[0] < 0.1 * perceptual(APPLE, PIZZA)


def test_perceived_distances_are_means_over_maps_and_pixels() -> None:
    """All vectors have the length 1: every pixel of every map has, and the weights sum to 1."""
    rows = perceived([APPLE, PIZZA]).astype(np.float64)
    np.testing.assert_allclose(np.square(rows).sum(1), 1, atol=1e-4)
    gap = np.square(rows[0] - rows[1]).sum()
    assert perceptual(APPLE, PIZZA) == pytest.approx(gap, rel=1e-6)
    both = np.stack([APPLE, APPLE]), np.stack([PIZZA, APPLE])  # a video: the mean over frames
    assert perceptual(*both) == pytest.approx(gap / 2, rel=1e-4)


def test_alignment_prefers_what_a_picture_shows() -> None:
    assert alignment(APPLE, "red apple") > alignment(APPLE, "pizza") + 20
    assert alignment(PIZZA, "pizza") > alignment(PIZZA, "red apple") + 20
    x = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    y = np.array([[4.0, 3.0], [-1.0, 0.0]], np.float32)
    np.testing.assert_allclose(cosine_score(x, y), [96, 0])  # 100 * 24/25, and not below 0


def test_fid_tells_sets_apart_by_what_they_show() -> None:
    first, second = (
        picture_features(np.concatenate([REAL[prompt] for prompt in chosen]))
        for chosen in (PROMPTS[:8], PROMPTS[8:])
    )
    other = picture_features(np.concatenate([noisy(REAL[prompt], 4) for prompt in PROMPTS[:8]]))
    assert fid(first, other) < 0.1 * fid(first, second)


def test_larger_pictures_are_averaged_and_others_refused() -> None:
    large = APPLE.repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(picture_features([large]), picture_features([APPLE]))
    with pytest.raises(ValueError, match="are 64x32 pixels; the packaged metric network reads squares of 64"):
        picture_features([APPLE[:, :32]])
    with pytest.raises(ValueError, match="there are no pictures"):
        picture_features([])


def test_evaluate_measures_by_prompts_and_by_references(tmp_path) -> None:
    ours = folder(tmp_path / "ours", [noisy(APPLE, 8), noisy(PIZZA, 8)], ["red apple", "pizza"])
    theirs = folder(tmp_path / "theirs", [APPLE, PIZZA], ["red apple", "pizza"])
    values = evaluate(ours, ["alignment", "perceptual"], reference=theirs)
    assert values["perceptual"] == pytest.approx(
        (perceptual(noisy(APPLE, 8), APPLE) + perceptual(noisy(PIZZA, 8), PIZZA)) / 2
    )
    assert evaluate(ours, ["alignment"]) == {"alignment": pytest.approx(values["alignment"])}
    with pytest.raises(ValueError, match="FID of 48 features needs at least 49 pictures a set, got 2"):
        evaluate(ours, ["fid"], reference=theirs)


@pytest.mark.parametrize("name", ["perceptual", "alignment"])
def test_merging_gives_the_mean_over_all(name: str) -> None:
    metric = plugins.find("viditq_jax.evaluate", name, "METRIC")
    expected = APPLE if name == "perceptual" else "red apple"
    one, two, three = (metric.update(metric.empty(), noisy(APPLE, spread), expected) for spread in (2, 8, 32))
    left = metric.finish(metric.merge(metric.merge(one, two), three))
    right = metric.finish(metric.merge(one, metric.merge(metric.empty(), metric.merge(two, three))))
    mean = np.mean([metric.measure(noisy(APPLE, spread), expected) for spread in (2, 8, 32)])
    assert left == pytest.approx(mean, rel=1e-9)
    assert right == pytest.approx(mean, rel=1e-9)
