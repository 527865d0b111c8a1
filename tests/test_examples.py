"""The examples run, and what they promise holds on the packaged model."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from viditq_jax.models import dit, stdit

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def run(name: str, folder: Path, *arguments: str) -> None:
    """As a user runs it: in a folder and a process of its own, with all of XLA's optimizations.

    The packaged model runs for longer than it compiles, so without them it would take twice the time.
    """
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_quickstart_draws_the_float_and_the_quantized_picture(tmp_path: Path) -> None:
    run("01_quickstart.py", tmp_path)
    picture = np.asarray(Image.open(tmp_path / "runs/quickstart.png")).astype(int)
    assert picture.shape == (64, 128, 3)
    float_half, quantized_half = picture[:, :64], picture[:, 64:]
    assert (float_half != quantized_half).any()
    assert np.square(float_half - quantized_half).mean() < 255**2 / 10**2.7  # 27 dB


def test_the_demo_keeps_what_it_promises(tmp_path: Path) -> None:
    """Quality, memory and disk, measured by the demo itself on two prompts."""
    run("demo.py", tmp_path, "--out", "demo", "--count", "2", "--recipes", "w8a8", "w4a8")
    records = json.loads((tmp_path / "demo/metrics.json").read_text())
    bounds = {"w8a8": (27, 0.52), "w4a8": (20, 0.28)}
    for name, (psnr, ratio) in bounds.items():
        record = records["variants"][name]
        assert record["psnr_db"] >= psnr
        assert 0.5 < record["ssim"] <= 1
        assert record["weight_bytes"] <= ratio * record["bfloat16_weight_bytes"]
        assert record["weight_disk_bytes"] <= ratio * record["bfloat16_weight_bytes"]
        assert record["artifact_bytes"] < records["variants"]["float"]["artifact_bytes"]
        assert record["seconds_per_image"] > 0
        if name != "float":
            assert 0 < record["drift"]["relative_l2"][0] < record["latent_rel_l2"] < 0.5
    assert records["noise_floor"]["psnr_db"] > records["variants"]["w8a8"]["psnr_db"]
    for name in ("grid.png", "video.webp", "report.html"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
    quality = records["quality"]
    assert quality["pictures"] == 8
    assert "needs more than 48 pictures" in quality["left_out"]["fid"]
    shares = {
        name: quality["variants"][name]["perceptual_share_percent"]["value"] for name in ("w8a8", "w4a8")
    }
    assert 0 < shares["w8a8"] < shares["w4a8"] < 100
    videos = records["video"]["variants"]
    assert videos["w8a8"]["psnr_db"] > videos["w4a8"]["psnr_db"] >= 18
    for name in ("w8a8", "w4a8"):
        assert videos[name]["flicker_levels"] > 0
        assert 0 <= videos[name]["motion_error_px"] < 4
    assert {entry.name for entry in (tmp_path / "demo").iterdir()} == load("demo.py")[
        "WRITTEN"
    ]  # so it may run again


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
