"""Quality of variants on drawings that were made worse by a known amount."""

import numpy as np
import pytest

from viditq_jax.conditions import packaged_prompts
from viditq_jax.evaluate.alignment import alignment
from viditq_jax.evaluate.perceptual import perceptual
from viditq_jax.quality import measure, real_pictures, verdict

REAL = real_pictures()
PROMPTS = packaged_prompts()


def noisy(pictures: list[np.ndarray], spread: float) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [(x + random.normal(0, spread, x.shape)).clip(0, 255).astype(np.uint8) for x in pictures]


@pytest.fixture(scope="module")
def found():
    """Four drawings of each prompt, as they are nearly, and worse and worse."""
    prompts = PROMPTS * 4
    drawn = [REAL[prompt][2 * (i // len(PROMPTS))] for i, prompt in enumerate(prompts)]
    variants = {name: noisy(drawn, spread) for name, spread in (("ref", 2), ("twin", 2), ("a", 8), ("b", 40))}
    return measure(variants, prompts, reference="ref", baseline="ref", resamples=60)


def test_a_variant_with_equal_pictures_is_not_worse_by_anything(found) -> None:
    twin = found["variants"]["twin"]
    for key in ("fid_to_reference", "perceptual_to_reference", "perceptual_share_percent"):
        np.testing.assert_allclose(list(twin[key].values()), 0, atol=1e-5)  # roots of rounding errors
    for worse in twin["degradation_percent"].values():
        assert (worse["value"], worse["low"], worse["high"]) == (0, 0, 0)
        assert worse["below_1_percent"] == "yes"


@pytest.mark.parametrize(
    "key", ["fid_to_real", "fid_to_reference", "perceptual_to_real", "perceptual_share_percent"]
)
def test_more_noise_is_worse_by_every_distance(found, key: str) -> None:
    a, b = (found["variants"][name][key] for name in "ab")
    assert a["low"] <= a["value"] <= a["high"] < b["low"] <= b["value"] <= b["high"]
    assert a["value"] > 0


def test_what_is_much_worse_is_not_below_one_percent(found) -> None:
    worse = found["variants"]["b"]["degradation_percent"]
    assert worse["perceptual_to_real"]["below_1_percent"] == worse["fid_to_real"]["below_1_percent"] == "no"
    assert found["left_out"] == {}
    assert "degradation_percent" not in found["variants"]["ref"]
    assert "fid_to_reference" not in found["variants"]["ref"]


def test_figures_are_the_means_of_the_measures() -> None:
    prompts = ["red apple", "pizza"] * 2
    reference = noisy([REAL[prompt][i] for i, prompt in enumerate(prompts)], 2)
    other = noisy(reference, 20)
    found = measure({"f": reference, "q": other}, prompts, reference="f", baseline="f", resamples=5)
    q = found["variants"]["q"]
    apart = np.mean([perceptual(x, y) for x, y in zip(other, reference, strict=True)])
    assert q["perceptual_to_reference"]["value"] == pytest.approx(apart, rel=1e-4)
    nearest = np.mean([min(perceptual(x, y) for y in REAL[p]) for x, p in zip(other, prompts, strict=True)])
    assert q["perceptual_to_real"]["value"] == pytest.approx(nearest, rel=1e-4)
    said = np.mean([alignment(x, prompt) for x, prompt in zip(other, prompts, strict=True)])
    assert q["alignment"]["value"] == pytest.approx(said, rel=1e-4)
    spread = [perceptual(reference[0], reference[2]), perceptual(reference[1], reference[3])]
    assert q["perceptual_share_percent"]["value"] == pytest.approx(100 * apart / np.mean(spread), rel=1e-4)
    assert found["left_out"] == {"fid": "needs more than 48 pictures and drawings, got 4 and 16"}
    assert not any("fid" in key for key in q)


def test_a_verdict_is_read_off_the_interval() -> None:
    assert verdict({"low": -3.0, "high": 0.9}) == "yes"
    assert verdict({"low": -3.0, "high": 1.1}) == "undecided"
    assert verdict({"low": 1.0, "high": 1.1}) == "no"


def test_prompts_without_drawings_are_refused() -> None:
    with pytest.raises(ValueError, match="no drawings of a castle"):
        measure({"f": [REAL["pizza"][0]]}, ["a castle"], reference="f", baseline="f")
