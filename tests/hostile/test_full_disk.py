"""A full disk, at whatever byte: one error that names the file, the old content, and a run that goes on."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from converters import save_safetensors
from tests import tiny
from tests.hostile.artifacts import pipeline
from viditq_jax.calibrate import load_stats, save_stats
from viditq_jax.checkpoint import ArtifactError
from viditq_jax.generate import Manifest, generate
from viditq_jax.load import load_pipeline
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.search.table import Row, Table, append
from viditq_jax.quant.stats import LayerStats
from viditq_jax.video import write_mp4

PROMPTS = ["a red apple", "two blue dogs"]


@contextmanager
def room(count: int) -> Iterator[None]:
    """Files of this process hold so many bytes at most, and the system refuses the next one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)  # which would keep half a program
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update("jax_enable_compilation_cache", cached)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


LAYERS = {"fc1": LayerStats.empty(256)}
TABLE = Table(load_recipe("w8a8"), (4, 8), {})
WRITERS: dict[str, Callable[[Path], Any]] = {
    "weights": lambda file: save_safetensors(file, {"w": np.zeros(10_000, np.float32)}),
    "statistics": lambda file: save_stats(LAYERS, file, {"done": 1}),
    "recipe": lambda file: load_recipe("w4a8-mp").save(file),
    "table": lambda file: TABLE.open(file),
    "video": lambda file: write_mp4(np.full((9, 64, 64, 3), 7, np.uint8), file, fps=8.0),
}


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("count", [0, 100, 1000])
def test_a_file_that_does_not_fit_leaves_the_old_one(what: str, count: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if what != "table":  # which is not replaced
        file.write_bytes(b"old")
    with room(count), pytest.raises(OSError, match=r"free some space .*run again: '.*/file'") as caught:
        WRITERS[what](file)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ([] if what == "table" else ["file"])
    assert what == "table" or file.read_bytes() == b"old"
    WRITERS[what](file)
    assert file.stat().st_size > 1000


def test_a_row_that_does_not_fit_is_measured_again(tmp_path: Path) -> None:
    TABLE.open(file := tmp_path / "t.jsonl")
    append(file, first := Row(("a",), 4, {"latent": 1.0}))
    whole = file.read_bytes()
    with room(len(whole) + 20), pytest.raises(OSError, match="free some space"):
        append(file, second := Row(("b",), 4, {"latent": 1.0}))
    assert file.read_bytes() == whole
    append(file, second)
    assert Table.read(file).rows == (first, second)


def test_statistics_of_a_batch_that_do_not_fit_leave_those_of_the_batches_before(tmp_path: Path) -> None:
    save_stats(LAYERS, file := tmp_path / "s", {"done": 1})
    more = {**LAYERS, "fc2": LayerStats.empty(512)}
    with room(1000), pytest.raises(OSError, match="free some space"):
        save_stats(more, file, {"done": 2})
    found, facts = load_stats(file)
    assert (found.keys(), facts) == (LAYERS.keys(), {"done": 1})


# What TensorStore has not yet written when Orbax gives up ends in a loop that is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("count", [10, 200, 1000])
def test_an_artifact_that_does_not_fit_leaves_the_old_one(count: int, tmp_path: Path) -> None:
    pipeline().save(tmp_path / "a")
    with (
        room(count),
        pytest.raises(ArtifactError, match=r"a could not be written .*nothing was changed") as caught,
    ):
        pipeline().save(tmp_path / "a", overwrite=True)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["a"]
    tiny.assert_same(load_pipeline(tmp_path / "a"), pipeline())


def test_an_artifact_for_which_there_is_no_room_is_refused_with_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ArtifactError, match=r"No space left on device: \d+ bytes are needed, 1000 are free"):
        pipeline().save(tmp_path / "a")
    assert names(tmp_path) == []


def test_a_generation_that_filled_the_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    small, whole, out = tiny.pipeline(depth=1), tmp_path / "whole", tmp_path / "out"
    generate(small, PROMPTS, whole, batch=1)
    sizes = {path.name: path.stat().st_size for path in whole.iterdir()}
    with (
        room(sizes["generation.json"] - 1),
        pytest.raises(OSError, match=r"free some space .*generation\.json"),
    ):
        generate(small, PROMPTS, out, batch=1)
    assert names(out) == []
    generate(small, PROMPTS[:1], out, batch=1)
    with room(sizes["00001.png"] - 1), pytest.raises(OSError, match=r"free some space .*00001\.png"):
        generate(small, PROMPTS, out, batch=1)
    assert names(out) == ["00000.png", "generation.json", "manifest.jsonl"]
    assert len(Manifest.read(out).images()) == 1
    generate(small, PROMPTS, out, batch=1)
    assert names(out) == names(whole)
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in names(whole))
