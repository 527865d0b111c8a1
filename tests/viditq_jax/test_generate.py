import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from viditq_jax.calibrate import calibrate
from viditq_jax.generate import Manifest, generate
from viditq_jax.quant.recipe import load_recipe

PROMPTS = ["a red apple", "two blue dogs", "a small pizza", "a cat face", "gold"]


def listing(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five pictures in one go."""
    out = tmp_path_factory.mktemp("whole")
    generate(tiny.pipeline(depth=1), PROMPTS, out, seed=7, batch=2)
    return out


def test_the_manifest_lists_every_picture_with_its_hash(whole: Path) -> None:
    manifest = Manifest.read(whole)
    assert [entry["condition"] for entry in manifest.entries] == PROMPTS
    for entry in manifest.entries:
        assert hashlib.sha256((whole / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    assert len({entry["sha256"] for entry in manifest.entries}) == len(PROMPTS)


def test_pictures_are_those_of_the_pipeline(whole: Path) -> None:
    expected = tiny.pipeline(depth=1)(PROMPTS[:2], seed=7)
    np.testing.assert_array_equal(np.asarray(Image.open(whole / "00001.png")), expected[1])


def test_a_killed_run_goes_on_without_a_lost_doubled_or_torn_picture(whole: Path, tmp_path: Path) -> None:
    """Killed in the middle of a manifest line, with a half-written picture beside it."""
    lines = (whole / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    for name in ("generation.json", "00000.png", "00001.png", "00002.png"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "manifest.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])
    finished = []
    generate(tiny.pipeline(depth=1), PROMPTS, tmp_path, seed=7, batch=2, advance=finished.append)
    assert listing(tmp_path) == listing(whole)
    assert sum(finished) == len(PROMPTS)


def test_nothing_is_computed_again_when_all_is_done(whole: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in whole.glob("*.png")}
    generate(tiny.pipeline(depth=1), PROMPTS, whole, seed=7, batch=2)
    assert {p.name: p.stat().st_mtime_ns for p in whole.glob("*.png")} == before


def test_other_settings_are_refused_in_the_same_folder(whole: Path) -> None:
    with pytest.raises(ValueError, match="made with another seed"):
        generate(tiny.pipeline(depth=1), PROMPTS, whole, seed=8, batch=2)
    with pytest.raises(ValueError, match="'a cat face' as sample 3"):
        generate(tiny.pipeline(depth=1), [*PROMPTS[:3], "another", "gold"], whole, seed=7, batch=2)
    with pytest.raises(ValueError, match="holds a generation already"):
        generate(tiny.pipeline(depth=1), PROMPTS, whole, seed=7, batch=2, resume=False)


def test_an_altered_picture_is_reported_and_not_replaced(whole: Path, tmp_path: Path) -> None:
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "00001.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"00001\.png is listed in the manifest, but is missing or altered"):
        generate(tiny.pipeline(depth=1), PROMPTS, tmp_path, seed=7, batch=2)
    assert (tmp_path / "00001.png").read_bytes() == b"mine"


def test_pictures_of_another_device_or_rule_of_guidance_are_not_mixed(whole: Path, tmp_path: Path) -> None:
    """Another device rounds differently, so half of each is a run that nobody can repeat."""
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = json.loads((tmp_path / "generation.json").read_text())
    changed = {**record, "device": "an abacus", "guidance_rule": {**record["guidance_rule"], "channels": 3}}
    (tmp_path / "generation.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="made with another guidance_rule, device"):
        generate(tiny.pipeline(depth=1), PROMPTS, tmp_path, seed=7, batch=2)


def test_a_folder_with_other_pictures_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "00000.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds 00000\.png, but no generation\.json"):
        generate(tiny.pipeline(depth=1), PROMPTS, tmp_path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("00000.png", b"mine")]
    with pytest.raises(ValueError, match="is a file; choose a folder"):
        generate(tiny.pipeline(depth=1), PROMPTS, tmp_path / "00000.png")


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"index": 0, "condition": "x", "file": "../x.png"}'])
def test_damaged_records_are_refused_by_name_and_line(line: str, tmp_path: Path) -> None:
    (tmp_path / "generation.json").write_text("{}")
    (tmp_path / "manifest.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"manifest\.jsonl line 1 is damaged"):
        Manifest.read(tmp_path)
    for text in ("{", "[]"):
        (tmp_path / "generation.json").write_text(text)
        with pytest.raises(ValueError, match=r"generation\.json (is damaged|holds no settings)"):
            Manifest.read(tmp_path)


def test_a_full_disk_names_the_file_and_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device; free some space .*generation\.json"):
        generate(tiny.pipeline(depth=1), PROMPTS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_are_recorded(whole: Path) -> None:
    settings = json.loads((whole / "generation.json").read_text())
    assert settings["seed"] == 7
    assert settings["steps"] == 3
    assert settings["recipe"] is None


def test_an_impossible_batch_and_a_folder_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch is 0"):
        generate(tiny.pipeline(depth=1), PROMPTS, tmp_path, batch=0)
    with pytest.raises(ValueError, match=r"holds no generation\.json"):
        Manifest.read(tmp_path)


def test_pictures_of_other_weights_are_kept_apart(whole: Path) -> None:
    """Equal facts do not mean equal weights: EMA and plain weights may come from files of one name."""
    pipeline = tiny.pipeline(depth=1)
    changed = pipeline.denoiser.map_weights(lambda path, weight: weight.at[0, 0].add(1e-3))
    with pytest.raises(ValueError, match="made with another weights"):
        generate(dataclasses.replace(pipeline, denoiser=changed), PROMPTS, whole, seed=7, batch=2)


def test_a_refused_run_leaves_no_folder_behind(tmp_path: Path) -> None:
    """The model has no prompt of that kind; nothing was drawn, so nothing is recorded."""
    with pytest.raises(ValueError, match="takes prompts, not int"):
        generate(tiny.pipeline(depth=1), [3], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("conditions", "words"), [([], "no conditions were given"), ("gold", r"one string .*: \['gold'\]")]
)
def test_no_conditions_and_a_bare_string_are_refused_as_such(
    conditions: Any, words: str, tmp_path: Path
) -> None:
    pipeline = tiny.pipeline(depth=1)
    with pytest.raises(ValueError, match=words):
        generate(pipeline, conditions, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=words):
        pipeline(conditions)
    with pytest.raises(ValueError, match=words):
        calibrate(pipeline, conditions, load_recipe("w8a8"))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_another_one_would_stand_for_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 4294967295"):
        tiny.pipeline(depth=1).latents(PROMPTS, seed=seed)
