"""Folders, shards, wrappers and prefixes: one mapping of names to tensors comes out of all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from converters import SourceError
from converters.sources import open_source, views

W = {"a.weight": np.ones((2, 3), np.float32), "b.bias": np.zeros(2, np.float32)}


def torch_state(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: torch.full(array.shape, value) for name, array in W.items()}


def sharded(folder: Path, extension: str = "safetensors") -> Path:
    """Two shards, one tensor each, and their index."""
    weight_map = {}
    for number, (name, array) in enumerate(W.items(), start=1):
        shard = f"model-0000{number}-of-00002.{extension}"
        if extension == "safetensors":
            save_file({name: array}, folder / shard)
        else:
            torch.save({name: torch.from_numpy(array)}, folder / shard)
        weight_map[name] = shard
    index = folder / f"model.{extension}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("extension", ["safetensors", "bin"])
@pytest.mark.parametrize("named", ["index", "folder"])
def test_shards_are_one_checkpoint(tmp_path: Path, extension: str, named: str) -> None:
    index = sharded(tmp_path, extension)
    tensors = open_source(index if named == "index" else tmp_path).tensors
    assert tensors.keys() == W.keys()
    assert all(np.array_equal(tensors[name].read(), W[name]) for name in W)


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(SourceError, match=r"lacks 2 of the 2 shards .*00001-of.*00002-of.*Download them too"):
        open_source(index)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a.weight": "../secret.safetensors"}}', "refused; shards lie beside"),
        ('{"weight_map": {"a.weight": "/etc/passwd"}}', "refused; shards lie beside"),
        ('{"weight_map": {"a.weight": ".."}}', r"lacks 1 of the 1 shards .*: \.\."),
        (
            '{"weight_map": {"a.weight": "model.safetensors.index.json"}}',
            "as a shard, which is no weights file",
        ),
        ('{"weight_map": {"c": "model-00001-of-00002.safetensors"}}', "1 tensors that are not there: c in"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, content: str, what: str) -> None:
    index = sharded(tmp_path)
    index.write_text(content)
    with pytest.raises(SourceError, match=what):
        open_source(index)


def test_a_folder_gives_its_config_and_its_most_precise_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"sample_size": 8}')
    half = {name: array.astype(np.float16) for name, array in W.items()}
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    torch.save(torch_state(), tmp_path / "diffusion_pytorch_model.bin")
    assert open_source(tmp_path).file.name == "diffusion_pytorch_model.bin"
    save_file(W, tmp_path / "diffusion_pytorch_model.safetensors")
    source = open_source(tmp_path)
    assert source.file.name == "diffusion_pytorch_model.safetensors"
    assert source.config == {"sample_size": 8}


def test_a_folder_that_does_not_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no weights .*it holds no file"):
        open_source(tmp_path)
    save_file(W, tmp_path / "one.safetensors")
    save_file(W, tmp_path / "two.safetensors")
    with pytest.raises(SourceError, match=r"several sets of weights: one\.safetensors, two\.safetensors"):
        open_source(tmp_path)
    with pytest.raises(SourceError, match=r"does not exist; .* holds one\.safetensors, two\.safetensors"):
        open_source(tmp_path / "three.safetensors")


@pytest.mark.parametrize("key", ["ema", "state_dict", "model", "module", "state_dict_ema"])
def test_the_weights_of_a_training_checkpoint_are_found(tmp_path: Path, key: str) -> None:
    content = {key: torch_state(), "opt": {"state": {}}, "epoch": 3, "args": None}
    torch.save(content, tmp_path / "x.pt")
    assert open_source(tmp_path / "x.pt").tensors.keys() == W.keys()


def test_smoothed_weights_win_and_others_can_be_asked_for(tmp_path: Path) -> None:
    def first(**kwargs: Any) -> float:
        return float(open_source(tmp_path / "x.pt", **kwargs).tensors["b.bias"].read()[0])

    torch.save({"model": torch_state(1), "ema": torch_state(2)}, tmp_path / "x.pt")
    assert first() == 2
    assert first(wrapper="model") == 1
    torch.save({"state_dict": torch_state(3), "state_dict_ema": torch_state(4)}, tmp_path / "x.pt")
    assert first() == 3
    assert first(wrapper="state_dict_ema") == 4
    with pytest.raises(SourceError, match="has no weights 'ema'; it holds: state_dict, state_dict_ema"):
        first(wrapper="ema")


def test_a_choice_of_weights_that_chooses_nothing_is_refused(tmp_path: Path) -> None:
    for path in (sharded(tmp_path), next(tmp_path.glob("*.safetensors"))):
        with pytest.raises(SourceError, match="so there is no 'ema' to choose"):
            open_source(path, wrapper="ema")


def test_a_file_without_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "args": {}}, tmp_path / "x.pt")
    with pytest.raises(SourceError, match="holds a dict of epoch, args, and no state dict"):
        open_source(tmp_path / "x.pt")
    torch.save([1], tmp_path / "x.pt")
    with pytest.raises(SourceError, match="holds a list, and no state dict"):
        open_source(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "base_model.", "_orig_mod.", "module._orig_mod.model."]
)
def test_a_prefix_of_all_names_is_stripped(tmp_path: Path, prefix: str) -> None:
    save_file({prefix + name: array for name, array in W.items()}, tmp_path / "x.safetensors")
    assert open_source(tmp_path / "x.safetensors").tensors.keys() == W.keys()


def test_a_prefix_of_some_names_stays(tmp_path: Path) -> None:
    save_file({"model.x": W["b.bias"], "y": W["b.bias"]}, tmp_path / "x.safetensors")
    assert open_source(tmp_path / "x.safetensors").tensors.keys() == {"model.x", "y"}


def test_the_parts_of_a_pipeline_in_one_file_are_seen_apart(tmp_path: Path) -> None:
    names = ["model.diffusion_model.a", "first_stage_model.b", "first_stage_model.c", "other.d"]
    save_file({name: W["b.bias"] for name in names}, tmp_path / "x.safetensors")
    found = [list(part) for part in views(open_source(tmp_path / "x.safetensors").tensors)]
    assert found[1:] == [["a"], ["b", "c"]]
    assert sorted(found[0]) == sorted(names)
