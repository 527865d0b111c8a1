"""Whole pipelines that diffusers saved: converted by the command line, they make the same pictures."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import diffusers_pipelines
from viditq_jax.cli import main
from viditq_jax.load import load_pipeline

SIDE = 32  # pixels
STEPS = 6


def picture(pipeline, latents) -> np.ndarray:
    """Pixels in [0, 1] before they are rounded to 8 bits."""
    return np.asarray(pipeline.decoder.call("decode", latents)) / 2 + 0.5


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, SIDE // 2, SIDE // 2, 4), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def test_pixart_sigma_makes_the_picture_that_diffusers_makes(folder: Path) -> None:
    reference = diffusers_pipelines.pixart_sigma(folder / "sigma")
    assert main(["convert", str(folder / "sigma"), "--out", str(folder / "out"), "--dtype", "float32"]) == 0
    pipeline = load_pipeline(folder / "out")
    start = noise(2)
    theirs = reference(
        diffusers_pipelines.PROMPTS, num_inference_steps=STEPS, height=SIDE, width=SIDE, output_type="np",
        use_resolution_binning=False, latents=torch.tensor(start.transpose(0, 3, 1, 2)),
    ).images  # fmt: skip
    latents = pipeline.latents(
        diffusers_pipelines.PROMPTS, steps=STEPS, size=(SIDE, SIDE), noise=jnp.asarray(start)
    )
    ours = np.clip(picture(pipeline, latents), 0, 1)
    assert theirs.std() > 0.05, "a flat picture would prove nothing"
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_dit_makes_the_picture_that_diffusers_makes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = diffusers_pipelines.dit(folder / "dit")
    assert main(["convert", str(folder / "dit"), "--out", str(folder / "dit-out"), "--dtype", "float32"]) == 0
    pipeline = load_pipeline(folder / "dit-out")
    start = noise(2)[:, :8, :8]
    given = torch.tensor(start.transpose(0, 3, 1, 2))
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *args, **kwargs: given)
    theirs = reference([3, 5], num_inference_steps=STEPS, output_type="np").images
    latents = pipeline.latents([3, 5], steps=STEPS, noise=jnp.asarray(start))
    ours = np.clip(picture(pipeline, latents), 0, 1)
    assert theirs.std() > 0.05, "a flat picture would prove nothing"
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_latte_makes_the_video_that_diffusers_makes(folder: Path) -> None:
    """Of one prompt: with several, diffusers lets padding take part, and a sample depends on the others."""
    reference, prompt = diffusers_pipelines.latte(folder / "latte"), diffusers_pipelines.PROMPTS[1]
    assert (
        main(["convert", str(folder / "latte"), "--out", str(folder / "latte-out"), "--dtype", "float32"])
        == 0
    )
    pipeline = load_pipeline(folder / "latte-out")
    assert (pipeline.frames, pipeline.fps) == (5, 8)
    start = np.random.default_rng(0).standard_normal((1, 5, SIDE // 2, SIDE // 2, 4), np.float32)
    theirs = reference(
        prompt, num_inference_steps=STEPS, height=SIDE, width=SIDE, video_length=5, output_type="np",
        latents=torch.tensor(start.transpose(0, 4, 1, 2, 3)),
    ).frames  # fmt: skip
    latents = pipeline.latents([prompt], steps=STEPS, noise=jnp.asarray(start))
    ours = np.stack([np.clip(picture(pipeline, latents[:, i]), 0, 1) for i in range(5)], axis=1)
    assert theirs.std() > 0.05, "a flat video would prove nothing"
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
