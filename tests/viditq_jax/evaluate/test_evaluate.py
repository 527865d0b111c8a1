import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from viditq_jax import plugins
from viditq_jax.evaluate import evaluate
from viditq_jax.evaluate.psnr import psnr
from viditq_jax.evaluate.ssim import ssim

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (24, 32, 3), np.uint8)


def folder(path: Path, pictures: list[np.ndarray], conditions: list[str], seed: int = 0) -> Path:
    """What `generate` writes, as far as evaluation reads it."""
    path.mkdir()
    (path / "generation.json").write_text(json.dumps({"seed": seed}))
    lines = []
    for i, (picture, condition) in enumerate(zip(pictures, conditions, strict=True)):
        file = path / f"{i:05d}.png"
        Image.fromarray(picture).save(file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        lines.append(json.dumps({"index": i, "condition": condition, "file": file.name, "sha256": digest}))
    (path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return path


def test_psnr_of_a_constant_error_is_a_formula() -> None:
    """An error of 3 everywhere: 10 log10(255^2 / 9)."""
    other = np.where(PICTURE > 200, PICTURE - 3, PICTURE + 3).astype(np.uint8)
    assert psnr(other, PICTURE) == pytest.approx(20 * math.log10(255 / 3), abs=1e-12)


def test_equal_pictures_have_infinite_psnr_and_ssim_one() -> None:
    assert psnr(PICTURE, PICTURE) == math.inf
    assert ssim(PICTURE, PICTURE) == pytest.approx(1, abs=1e-12)


def test_ssim_of_constant_pictures_is_a_formula() -> None:
    """Without structure only the means remain: (2 a b + c) / (a^2 + b^2 + c), c = (0.01 255)^2."""
    a, b, c = 100.0, 120.0, 2.55**2
    flat = [np.full((24, 24, 3), value, np.uint8) for value in (100, 120)]
    assert ssim(*flat) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=1e-9)


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_merging_in_any_order_gives_the_mean_over_all_pairs(name: str) -> None:
    metric = plugins.find("viditq_jax.evaluate", name, "METRIC")
    noisy = [
        np.clip(PICTURE + RNG.integers(-s, s + 1, PICTURE.shape), 0, 255).astype(np.uint8) for s in (2, 9, 30)
    ]
    one, two, three = (metric.update(metric.empty(), picture, PICTURE) for picture in noisy)
    left = metric.finish(metric.merge(metric.merge(one, two), three))
    right = metric.finish(metric.merge(one, metric.merge(metric.empty(), metric.merge(two, three))))
    mean = np.mean([metric.measure(picture, PICTURE) for picture in noisy])
    assert left == pytest.approx(mean, rel=1e-12)
    assert right == pytest.approx(mean, rel=1e-12)


def test_results_carry_their_units(tmp_path: Path) -> None:
    other = np.flip(PICTURE, 0).copy()
    ours = folder(tmp_path / "ours", [other, PICTURE // 2], ["a", "b"])
    theirs = folder(tmp_path / "theirs", [PICTURE, PICTURE], ["a", "b"])
    values = evaluate(ours, reference=theirs)
    assert values["psnr_db"] == pytest.approx((psnr(other, PICTURE) + psnr(PICTURE // 2, PICTURE)) / 2)
    assert set(values) == {"psnr_db", "ssim"}


def test_other_prompts_seeds_sizes_or_names_are_refused(tmp_path: Path) -> None:
    ours = folder(tmp_path / "ours", [PICTURE], ["a"])
    with pytest.raises(ValueError, match="do not hold the same conditions"):
        evaluate(ours, reference=folder(tmp_path / "prompt", [PICTURE], ["b"]))
    with pytest.raises(ValueError, match="do not hold the same conditions"):
        evaluate(ours, reference=folder(tmp_path / "seed", [PICTURE], ["a"], seed=1))
    with pytest.raises(ValueError, match="at the same size"):
        evaluate(ours, reference=folder(tmp_path / "size", [PICTURE[:20]], ["a"]))
    with pytest.raises(LookupError, match="psnr"):
        evaluate(ours, ["psrn"], reference=ours)
    with pytest.raises(ValueError, match="give their folder as reference"):
        evaluate(ours)
    with pytest.raises(ValueError, match=r"generation\.json"):
        evaluate(ours, reference=tmp_path)


def test_a_picture_that_was_altered_is_not_measured(tmp_path: Path) -> None:
    ours, theirs = (folder(tmp_path / name, [PICTURE], ["a"]) for name in ("ours", "theirs"))
    Image.fromarray(255 - PICTURE).save(ours / "00000.png")
    with pytest.raises(ValueError, match=r"00000\.png is missing or altered"):
        evaluate(ours, reference=theirs)
