"""The examples run, on small models; check_packaged.py runs them on the packaged ones."""

import dataclasses
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from viditq_jax.models import dit, stdit

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_the_demo_removes_nothing_that_it_did_not_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = load("demo.py")["main"]
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    for arguments, words in (
        (["--out", str(tmp_path)], "holds thesis.tex, which no run of this demo wrote"),
        (["--out", str(tmp_path / "thesis.tex")], "is a file; choose another --out"),
        (["--count", "0"], "--count is 1 to"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert {entry.name for entry in tmp_path.iterdir()} == {"artifacts", "thesis.tex"}


def test_a_small_calibration_goes_the_way_of_the_full_sizes(tmp_path: Path) -> None:
    run = load("03_calibrate_full_size.py")["main"]
    flags = [
        "--model",
        "pixart-sigma-xl-2-256",
        "--depth",
        "1",
        "--file",
        str(tmp_path / "stats.safetensors"),
    ]
    record = run([*flags, "--prompts", "1"])
    assert record["layers"] == 14
    assert record["peak_bytes"] > record["model_bytes"]
    assert record["prompts_of_this_run"] == 1


def test_two_blocks_of_a_published_shape_go_the_way_of_the_full_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = load("02_full_size.py")
    name = "dit-s-8-256"
    monkeypatch.setitem(dit.CONFIGS, name, dataclasses.replace(dit.CONFIGS[name], depth=2))
    records = {stage: stages[stage](name, tmp_path) for stage in stages["STAGES"]}
    assert records["quantize"]["layers"] == 2 * 4
    assert records["quantize"]["ratio"] == pytest.approx(0.5, abs=0.01)
    assert records["step"]["finite"]


def test_a_block_of_a_video_model_goes_the_way_of_the_full_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, name = load("04_full_size_video.py"), "stdit-xl-2-16x256x256"
    config = stdit.Config(
        frames=3, input_size=8, text_length=5, depth=1, width=128, heads=2, caption_channels=32
    )
    monkeypatch.setitem(stdit.CONFIGS, name, config)
    stages = [
        each for each in script["STAGES"] if not each.endswith("w8a8")
    ]  # two recipes cost twice as much
    records = {each: script["stage"](each, name, tmp_path) for each in stages}
    assert records["quantize:w4a8"]["layers"] == 9
    assert records["quantize:w4a8"]["ratio"] <= 0.31  # scales of rows this short weigh more
    assert records["step:w4a8"]["latents"] == [1, 3, 8, 8, 4]
    assert records["step:w4a8"]["finite"]


def test_the_video_example_writes_both_videos_and_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny model: on the packaged one the command line makes the same."""
    tiny.video().save(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--recipe", "w8a8-dynamic", "--prompt", "a red apple"]
    load("05_video.py")["main"]([*flags, "--out", str(tmp_path / "out")])
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"float.mp4", "w8a8-dynamic.mp4", "contact.png"}
    assert "5 frames" in capsys.readouterr().out
