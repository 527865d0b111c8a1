"""Video files: exact frames, and what can be watched."""

import hashlib
import io
import json
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from viditq_jax.evaluate import TEMPORAL, evaluate
from viditq_jax.generate import CONTACT, Manifest, generate
from viditq_jax.video import (
    animation,
    contact_sheet,
    enlarged,
    frames_of_strip,
    side_by_side,
    strip,
    write_mp4,
)

VIDEO = np.random.default_rng(0).integers(0, 256, (4, 6, 10, 3), np.uint8)
PROMPTS = ["a red apple", "two blue dogs"]


def smooth(height: int, width: int, frames: int = 5) -> np.ndarray:
    """A bright spot that moves right, without hard edges, which codecs blur."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    spot = np.exp(-((x - width / 3 - t * width / 20) ** 2 + (y - height / 2) ** 2) / (height / 5) ** 2)
    return (40 + 180 * spot[..., None] * np.array([1.0, 0.8, 0.6])).astype(np.uint8)


def decoded(file: Path) -> tuple[str, np.ndarray]:
    """What the decoder says of the file, and its frames."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    arguments = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run([ffmpeg, "-i", str(file), *arguments], capture_output=True, check=True)
    says = next(line for line in done.stderr.decode().splitlines() if "Stream #0:0" in line)
    width, height = map(int, re.search(r", (\d+)x(\d+)", says).groups())
    return says, np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)


def test_a_strip_holds_every_frame_exactly_equal_ones_too() -> None:
    still = np.concatenate([VIDEO, VIDEO[-1:]])
    assert strip(still).shape == (6, 50, 3)
    np.testing.assert_array_equal(frames_of_strip(strip(still), 5), still)
    with pytest.raises(ValueError, match="3 frames do not fill a picture 50 pixels wide"):
        frames_of_strip(strip(still), 3)


def test_small_videos_are_enlarged_by_a_whole_factor() -> None:
    large = enlarged(VIDEO, shortest=13)
    assert large.shape == (4, 18, 30, 3)
    np.testing.assert_array_equal(large[:, 1::3, 2::3], VIDEO)
    assert enlarged(VIDEO, shortest=6) is not None
    assert enlarged(VIDEO, shortest=5).shape == VIDEO.shape


@pytest.mark.parametrize(("height", "width"), [(64, 64), (257, 301)])
def test_an_mp4_shows_the_frames_at_their_pace(height: int, width: int, tmp_path: Path) -> None:
    """Odd sides get one line more. H.264 at this quality is within 2 levels on what is smooth."""
    video = smooth(height, width)
    write_mp4(video, tmp_path / "a.mp4", fps=8.0)
    says, seen = decoded(tmp_path / "a.mp4")
    shown = enlarged(video)
    assert all(word in says for word in ("h264", "yuv420p", " 8 fps"))
    assert seen.shape == (5, shown.shape[1] + shown.shape[1] % 2, shown.shape[2] + shown.shape[2] % 2, 3)
    difference = np.abs(seen[:, : shown.shape[1], : shown.shape[2]].astype(int) - shown)
    assert difference.mean() < 2
    write_mp4(video, tmp_path / "b.mp4", fps=8.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"a.mp4", "b.mp4"}


def test_an_mp4_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OSError, match=r"free some space or check the permissions, .*b\.mp4"):
        write_mp4(VIDEO, tmp_path / "file" / "b.mp4", fps=8.0)
    with pytest.raises(OSError, match=r"the encoder failed .*c\.mp4"):
        write_mp4(VIDEO, tmp_path / "c.mp4", fps=-1.0)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_webp_animation_loses_nothing_and_a_gif_moves() -> None:
    image = Image.open(io.BytesIO(animation(VIDEO, fps=8.0)))
    for i, frame in enumerate(VIDEO):
        image.seek(i)
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame)
        assert image.info["duration"] == 125
    assert image.info["loop"] == 0
    gif = Image.open(io.BytesIO(animation(VIDEO, fps=8.0, format="GIF")))
    assert gif.n_frames == 4
    with pytest.raises(ValueError, match="'APNG' is not animated here"):
        animation(VIDEO, fps=8.0, format="APNG")


def test_a_sheet_has_a_row_a_video_and_a_column_a_frame() -> None:
    """Frames of 64 pixels are shown at 128."""
    videos = [smooth(64, 64), smooth(64, 64)[::-1]]
    sheet = np.asarray(contact_sheet(videos, PROMPTS))
    assert sheet.shape == (2 * (18 + 128), 5 * 128, 3)
    np.testing.assert_array_equal(sheet[18 : 18 + 128 : 2, 128:256:2], videos[0][1])
    large = contact_sheet([smooth(256, 512, frames=40)], ["large"])
    assert large.size == (16 * 256, 18 + 128)
    with pytest.raises(ValueError, match="2 videos with 1 labels"):
        contact_sheet(videos, ["one"])


def test_videos_are_shown_side_by_side_under_their_names() -> None:
    """Frames of 64 pixels at 128, below a line of text."""
    one, two = smooth(64, 64), smooth(64, 64)[::-1]
    both = side_by_side({"float": one, "w8a8": two})
    assert both.shape == (5, 18 + 128, 256, 3)
    np.testing.assert_array_equal(both[:, 18::2, :128:2], one)
    np.testing.assert_array_equal(both[:, 19::2, 129::2], two)
    assert both[:, :18].min() < 128  # letters


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    generate(tiny.video(), PROMPTS, out, seed=1, batch=2)
    return out


def test_generated_videos_are_listed_by_their_frames_and_lie_beside_them(made: Path) -> None:
    names = {file.name for file in made.iterdir()}
    pairs = {f"0000{i}.{kind}" for i in range(2) for kind in ("png", "mp4")}
    assert names == {"generation.json", "manifest.jsonl", CONTACT, *pairs}
    manifest = Manifest.read(made)
    assert (manifest.fps, manifest.settings["frames"]) == (8, 5)
    for entry in manifest.entries:
        assert hashlib.sha256((made / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    np.testing.assert_array_equal(manifest.images(), tiny.video()(PROMPTS, seed=1))


def test_what_is_there_to_be_watched_is_made_again_without_computing(made: Path) -> None:
    first = (made / "00001.mp4").read_bytes()
    (made / "00001.mp4").unlink()
    (made / CONTACT).unlink()
    generate(tiny.video(), PROMPTS, made, seed=1, batch=2)
    assert (made / "00001.mp4").read_bytes() == first
    assert (made / CONTACT).is_file()


def test_another_number_of_frames_is_another_run(made: Path) -> None:
    with pytest.raises(ValueError, match="made with another frames"):
        generate(tiny.video(), PROMPTS, made, seed=1, batch=2, frames=3)


def test_a_manifest_leads_out_of_its_folder_by_no_name(made: Path, tmp_path: Path) -> None:
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lines = (made / "manifest.jsonl").read_text().splitlines()
    for change in ({"video": "../00000.mp4"}, {"frames": "five"}):
        line = json.dumps({**json.loads(lines[0]), **change})
        (tmp_path / "manifest.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match="line 1 is damaged"):
            Manifest.read(tmp_path)


def test_videos_are_compared_by_quality_and_motion(made: Path) -> None:
    values = evaluate(made, reference=made)
    assert values["psnr_db"] == np.inf
    assert values["ssim"] == 1
    assert values["flicker_levels"] == values["motion_error_px"] == 0
    assert {name.rsplit("_", 1)[0] for name in values} >= set(TEMPORAL) - {"frame_consistency"}
    alone = evaluate(made, ["frame_consistency"])
    assert alone["frame_consistency"] == values["frame_consistency"]
    with pytest.raises(ValueError, match="flicker compare with reference"):
        evaluate(made, ["flicker"])
