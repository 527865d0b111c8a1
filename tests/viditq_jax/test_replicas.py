"""Many devices: the samples are those of one, to the byte, and shared weights lie where they are computed."""

import dataclasses
import hashlib
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests import tiny
from viditq_jax.checkpoint import fingerprint
from viditq_jax.generate import Manifest, generate
from viditq_jax.load import load_pipeline
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.columns import ColumnShard
from viditq_jax.quant.qweight import quantized_part
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.replicas import replica_mesh

PROMPTS = ["a red apple", "two blue dogs", "a small pizza", "a cat face", "gold", "green heart", "a table"]
W4A8 = Recipe(
    (Rule(("blocks/*",), Spec.parse("int4/group32/asym"), Spec.parse("int8/token/asym"), ("hadamard",)),),
    name="w4a8",
)
pytestmark = pytest.mark.skipif(len(jax.devices()) < 4, reason="needs four devices; see tests/conftest.py")


@cache
def quantized() -> Pipeline:
    return tiny.quantized(tiny.pipeline(depth=1), W4A8)


def listing(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures by one device."""
    out = tmp_path_factory.mktemp("alone")
    generate(quantized(), PROMPTS, out, seed=7, batch=2)
    return out


@pytest.mark.parametrize(("replicas", "share"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_pictures_are_the_same_on_any_number_of_devices(
    alone: Path, tmp_path: Path, replicas: int, share: int
):
    generate(quantized(), PROMPTS, tmp_path / "out", seed=7, batch=2, mesh=replica_mesh(replicas, share))
    assert listing(tmp_path / "out") == listing(alone)


def test_shards_fill_one_folder_that_the_last_makes_whole(alone: Path, tmp_path: Path):
    first = generate(quantized(), PROMPTS, tmp_path, seed=7, batch=2, shard=(1, 2))
    assert [entry["index"] for entry in first.entries] == [2, 3, 6]
    assert not (tmp_path / "manifest.jsonl").exists()
    generate(quantized(), PROMPTS, tmp_path, seed=7, batch=2, shard=(0, 2))
    assert listing(tmp_path) == listing(alone)


def test_a_run_that_was_cut_goes_on_with_other_devices_and_shards(alone: Path, tmp_path: Path):
    lines = (alone / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("generation.json", "00000.png", "00003.png"):
        (tmp_path / name).write_bytes((alone / name).read_bytes())
    (tmp_path / "manifest-1-of-3.jsonl").write_bytes(lines[3] + lines[4][:9])
    (tmp_path / "manifest.jsonl").write_bytes(lines[0])
    generate(quantized(), PROMPTS, tmp_path, seed=7, batch=2, mesh=replica_mesh(2))
    assert listing(tmp_path) == listing(alone)
    assert len(Manifest.read(tmp_path).entries) == len(PROMPTS)


def test_devices_that_share_a_replica_hold_their_channels_alone():
    on = quantized().on(replica_mesh(2, 2))
    weight = on.denoiser.weights()["blocks/0/mlp/fc1"]
    assert isinstance(weight, ColumnShard)
    part = quantized_part(weight)
    n, columns = part.weight.values.shape
    for array in (part.weight.values, part.weight.scale, part.weight.zero, part.weight_sum):
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {n // 2}
    whole = quantized_part(quantized().denoiser.weights()["blocks/0/mlp/fc1"])
    np.testing.assert_array_equal(part.weight.values, whole.weight.values)
    assert columns == part.shape[1] // 2
    assert fingerprint(on.nets()) == fingerprint(quantized().nets())


def test_an_artifact_goes_straight_to_its_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = quantized()(PROMPTS[:4], seed=3)
    quantized().save(tmp_path / "artifact")
    whole: list[tuple[int, ...]] = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, place=None: (whole.append(type(x)), put(x, place))[1])
    on = load_pipeline(tmp_path / "artifact", mesh=replica_mesh(2, 2))
    assert set(whole) == {np.ndarray}  # from the host, each array once
    monkeypatch.undo()
    np.testing.assert_array_equal(on(PROMPTS[:4], seed=3), wanted)


def test_what_changes_over_denoising_is_shared_as_well():
    ranged = dataclasses.replace(
        W4A8,
        ranges=(400,),
        rules=(
            dataclasses.replace(
                W4A8.rules[0],
                weight=Spec.parse("int8/channel"),
                weight_in=((1, Spec.parse("int4/channel/asym")),),
            ),
        ),
    )
    pipeline = tiny.quantized(tiny.pipeline(depth=1), ranged)
    np.testing.assert_array_equal(
        pipeline.on(replica_mesh(2, 2))(PROMPTS[:4], seed=3),
        np.concatenate([pipeline(PROMPTS[i : i + 2], seed=3, first=i) for i in (0, 2)]),
    )


def test_what_cannot_be_done_says_why():
    with pytest.raises(ValueError, match="need 8 devices, and this process has"):
        replica_mesh(4, len(jax.devices()) // 2 + 1 if len(jax.devices()) > 4 else 2)
    with pytest.raises(ValueError, match="make it by replica_mesh"):
        quantized().on(Mesh(np.array(jax.devices()[:2]), ("batch",)))
    with pytest.raises(ValueError, match="3 devices cannot share the output channels of"):
        quantized().on(replica_mesh(1, 3))
    on = quantized().on(replica_mesh(2, 2))
    with pytest.raises(ValueError, match="3 conditions are not shared evenly by 2 replicas"):
        on(PROMPTS[:3])
    with pytest.raises(ValueError, match="lies on a mesh already"):
        on.on(replica_mesh(2))
    with pytest.raises(ValueError, match="only the sampling of a pipeline knows how"):
        on.denoiser.weights()["blocks/0/mlp/fc1"].linear(np.zeros((2, 32), np.float32), None)
    with pytest.raises(ValueError, match="shard 2 of 2; the first of n is 0"):
        generate(quantized(), PROMPTS, "unused", shard=(2, 2))
