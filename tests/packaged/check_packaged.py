"""What users run first, as they run it, on the packaged models: it works, and keeps what it promises.

Minutes of sampling, so `make test` leaves it out: make check-examples.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled programs, which the examples share."""
    return tmp_path_factory.mktemp("programs")


def run(name: str, folder: Path, programs: Path, *arguments: str) -> None:
    """In a folder and a process of its own, with all of XLA's optimizations."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "PYTHONPATH": str(EXAMPLES.parent),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_quickstart_draws_the_float_and_the_quantized_picture(tmp_path: Path, programs: Path) -> None:
    run("01_quickstart.py", tmp_path, programs)
    picture = np.asarray(Image.open(tmp_path / "runs/quickstart.png")).astype(int)
    assert picture.shape == (64, 128, 3)
    float_half, quantized_half = picture[:, :64], picture[:, 64:]
    assert (float_half != quantized_half).any()
    assert np.square(float_half - quantized_half).mean() < 255**2 / 10**2.7  # 27 dB


def test_the_demo_keeps_what_it_promises(tmp_path: Path, programs: Path) -> None:
    """Quality, memory and disk, measured by the demo itself on two prompts."""
    run("demo.py", tmp_path, programs, "--out", "demo", "--count", "2", "--recipes", "w8a8", "w4a8")
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
    written = runpy.run_path(str(EXAMPLES / "demo.py"))["WRITTEN"]
    assert {entry.name for entry in (tmp_path / "demo").iterdir()} == written  # so it may run again
