"""The features of papers' FID as pytorch-fid computes them, with random weights; clear words without any."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.viditq_jax.evaluate.inception_case import PICTURES, state_dict
from viditq_jax.evaluate import evaluate
from viditq_jax.evaluate.fid import Moments, State
from viditq_jax.evaluate.fid_inception import load

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/fid_inception.json").read_text())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    arrays = state_dict(GOLDEN["shapes"])
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, file)
    return file


def test_features_are_those_of_pytorch_fid(weights: Path) -> None:
    """94 layers in float32, with batch normalization folded in: 1e-5 of the largest feature, twice for the
    kernels that were rounded anew.
    """
    found = load(str(weights)).features(PICTURES)
    assert found.shape == (2, 2048)
    expected = np.array(GOLDEN["features"])
    np.testing.assert_allclose(found[:, ::16], expected, atol=2e-5 * np.abs(expected).max())


def test_two_pictures_are_no_sample_of_2048_features(weights: Path) -> None:
    metric = load(str(weights))
    row = np.ones((1, 2048), np.float32)
    with pytest.raises(ValueError, match="FID of 2048 features needs at least 2049 pictures a set, got 1"):
        metric.finish(State(Moments.of(row), Moments.of(row)))


def test_weights_that_are_missing_or_others_are_named(tmp_path: Path) -> None:
    (tmp_path / "generation.json").write_text(json.dumps({"seed": 0}))
    with pytest.raises(ValueError, match=r"fid_inception needs pt_inception.* as fid_inception=PLACE"):
        evaluate(tmp_path, ["fid_inception"])
    with pytest.raises(ValueError, match="holds no weights of FID's InceptionV3"):
        load(str(tmp_path / "nothing.pth"))
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "half.pth")
    with pytest.raises(ValueError, match=r"is not FID's InceptionV3: 'Conv2d_1a_3x3\.bn\.weight'"):
        load(str(tmp_path / "half.pth"))
