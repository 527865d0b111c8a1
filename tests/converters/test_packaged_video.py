"""The packaged video model: it is small, and it loads with the image model's other parts."""

from pathlib import Path

import numpy as np

from converters import convert

ASSETS = Path(__file__).parents[2] / "viditq_jax/assets"
PACKAGE = ASSETS / "default-video"


def test_the_package_is_small() -> None:
    assert sum(file.stat().st_size for file in PACKAGE.rglob("*") if file.is_file()) < 14e6


def test_the_package_loads_with_the_parts_of_the_image_model() -> None:
    video, image = convert(PACKAGE), convert(ASSETS / "default")
    assert video.facts["denoiser"]["model"] == "stdit"
    assert video.facts["frames"] == 8
    for name in ("decoder", "text_encoder", "tokenizer", "sampler", "image_size", "dtype"):
        assert video.facts[name] == image.facts[name]
    # Each half of the guided batch has the mask of its own text, and all channels are guided.
    assert video.facts["guidance"] == image.facts["guidance"]
    assert video.files == image.files
    weights = {name: np.asarray(value.get_value(), np.float32) for name, value in _variables(video)}
    assert all(np.isfinite(value).all() for value in weights.values())
    across = [value for name, value in weights.items() if "attn_temp/proj/weight" in name]
    assert len(across) == video.facts["denoiser"]["config"]["depth"]
    assert all(np.abs(value).max() > 0 for value in across)  # zero in the image model that it started from


def test_each_prompt_is_drawn_once_in_samples() -> None:
    from PIL import Image

    prompts = (ASSETS / "prompts/default-video.txt").read_text().splitlines()
    assert len(prompts) == len(set(prompts)) == 16
    with Image.open(PACKAGE / "samples.png") as sheet:
        assert sheet.size == (8 * 64, len(prompts) * 64)
    card = (PACKAGE / "CARD.md").read_text()
    assert all(prompt in card for prompt in prompts)


def _variables(artifact):
    return artifact.nets["denoiser"]().variables()
