"""LPIPS as its authors' package computes it, with random weights; and clear words where there are none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.viditq_jax.evaluate.lpips_case import PICTURES, state_dict
from viditq_jax.evaluate import evaluate
from viditq_jax.evaluate.lpips import load

# What lpips 0.1.4 gave for these weights and pictures, with torchvision 0.29.2 and torch 2.13.0 on a CPU:
# lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True), after load_state_dict and eval.
GOLDEN = (0.005388212390244007, 1.3262981176376343, 0.9041159749031067)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("lpips") / "lpips.pth"
    torch.save({name: torch.from_numpy(array) for name, array in state_dict().items()}, file)
    return file


@pytest.mark.parametrize(("pair", "expected"), [*zip(PICTURES, GOLDEN, strict=True)])
def test_distances_are_those_of_the_authors(pair, expected: float, weights: Path) -> None:
    """Small ones are differences of features near 1, each rounded: 1e-5 of the largest distance, as all
    parity here.
    """
    assert load(str(weights)).measure(*pair) == pytest.approx(expected, abs=1e-5)


def test_equal_pictures_have_no_distance_and_videos_have_the_mean(weights: Path) -> None:
    measure = load(str(weights)).measure
    a, b = PICTURES[0]
    assert measure(a, a) == 0
    assert measure(np.stack([a, a]), np.stack([b, a])) == pytest.approx(GOLDEN[0] / 2, abs=1e-5)
    with pytest.raises(ValueError, match="LPIPS needs 31 pixels a side at least, got 20x64"):
        measure(a[:20], b[:20])


def test_weights_that_are_missing_or_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "generation.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(ValueError, match=r"lpips needs the state dict of lpips\.LPIPS.* as lpips="):
        evaluate(tmp_path, ["lpips"])
    with pytest.raises(ValueError, match="holds no weights of LPIPS"):
        load(str(tmp_path / "nothing.pth"))
    arrays = state_dict()
    del arrays["lin2.model.1.weight"]
    arrays["net.slice1.0.bias"] = arrays["net.slice1.0.bias"][:8].copy()
    save_file(arrays, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"slice1\.0\.bias is \[8\], expected \[64\]; lin2.* is missing"):
        load(str(tmp_path / "other.safetensors"))
