"""Videos as files: exactly, as one picture of all frames; and to be watched, as MP4, animation or sheet.

Frames side by side in one PNG are what is measured: lossless, and nothing in between may merge two equal
frames, as animated formats do. An MP4 (H.264) is lossy, and equal frames give equal bytes only with the same
version of the encoder; it lies beside its PNG and can be made again from it.
"""

import base64
import io
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from viditq_jax.files import writing

Video = UInt8[np.ndarray, "t h w 3"]

WATCHABLE = 256  # pixels that the shorter side has at least, to be watched
_TILE = 128  # pixels of the shorter side of a frame on a sheet, about
_MOST_FRAMES, _MOST_ROWS = 16, 32  # on a sheet
_ENCODER = (  # of ffmpeg
    *("-f", "mp4", "-movflags", "+faststart"),
    *("-c:v", "libx264", "-pix_fmt", "yuv420p"),
    *("-crf", "16"),  # hardly told from the original at sight
    # No notes of versions, and one thread: the same frames give the same bytes.
    *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-threads", "1"),
)
_LABEL = 8  # pixels around a text
_LINE = 18  # pixels of a line of text


def strip(video: Video) -> UInt8[np.ndarray, "h f 3"]:
    """All frames side by side, the first on the left."""
    return np.concatenate(list(video), axis=1)


def frames_of_strip(picture: UInt8[np.ndarray, "h f 3"], frames: int) -> Video:
    """The video of a strip. Raises ValueError for a picture that has no such number of frames."""
    if frames < 1 or picture.shape[1] % frames:
        raise ValueError(f"{frames} frames do not fill a picture {picture.shape[1]} pixels wide.")
    return np.stack(np.split(picture, frames, axis=1))


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def read_picture(content: bytes, where: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture that lay at `where`. Raises ValueError for what is none, or a huge one."""
    try:
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where} is no picture that can be read ({error}); generate it again.") from error


def enlarged(video: Video, shortest: int = WATCHABLE) -> UInt8[np.ndarray, "t i j 3"]:
    """Every pixel as a square of pixels, so that the shorter side has at least so many."""
    factor = max(1, -(-shortest // min(video.shape[1:3])))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def write_mp4(video: Video, file: str | Path, *, fps: float) -> None:
    """Write H.264 that every browser plays; small videos are enlarged. The file appears whole or not at all.

    Colours of two by two pixels are stored together, so that an odd side gets its last line twice.
    Raises OSError if the encoder fails.
    """
    from imageio_ffmpeg import get_ffmpeg_exe  # here, so that a machine which only computes needs no encoder

    video = enlarged(video)
    odd = [(0, side % 2) for side in video.shape[1:3]]
    video = np.pad(video, [(0, 0), *odd, (0, 0)], mode="edge")
    _, height, width, _ = video.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    # Not by imageio's own writer: it forks, which JAX's threads do not survive for certain.
    command = [get_ffmpeg_exe(), "-v", "error", "-y", *raw, *_ENCODER]
    with writing(file) as partial:
        done = subprocess.run(
            [*command, str(partial)], input=video.tobytes(), capture_output=True, check=False
        )
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise OSError(f"the encoder failed ({said[-200:] or done.returncode})")


def animation(video: Video, *, fps: float, format: str = "WEBP") -> bytes:
    """An endless animation, as a file: "WEBP" without loss, or "GIF" with at most 256 colours a frame.

    Frames that equal the one before are merged with it and shown for longer.
    """
    if format not in ("WEBP", "GIF"):
        raise ValueError(f"format {format!r} is not animated here; choose WEBP or GIF.")
    frames = [Image.fromarray(frame) for frame in video]
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {"disposal": 1}
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format=format,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
    )
    return buffer.getvalue()


def data_uri(sample: UInt8[np.ndarray, "*t h w 3"], fps: float | None = None) -> str:
    """A picture, or with `fps` a video that plays again and again, as a URI that holds it without loss."""
    if fps is not None:
        return "data:image/webp;base64," + base64.b64encode(animation(sample, fps=fps)).decode()
    return "data:image/png;base64," + base64.b64encode(png(Image.fromarray(sample))).decode()


def contact_sheet(videos: Sequence[Video], labels: Sequence[str]) -> Image.Image:
    """A row a video, its label above, a column a frame; of many videos the first 32.

    Of long ones 16 frames, evenly chosen. Raises ValueError if there is nothing to show, or not a label for
    each.
    """
    if not videos or len(videos) != len(labels):
        raise ValueError(f"{len(videos)} videos with {len(labels)} labels; give a label for each of some.")
    videos, font = videos[:_MOST_ROWS], ImageFont.load_default(13)
    rows = [_row(video) for video in videos]
    texts = [int(font.getlength(label)) + 2 * _LABEL for label in labels[: len(rows)]]
    width, height = max(*(row.width for row in rows), *texts), sum(row.height + _LINE for row in rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for row, label in zip(rows, labels, strict=False):
        draw.text((_LABEL // 2, top + 1), label, fill="black", font=font)
        sheet.paste(row, (0, top + _LINE))
        top += _LINE + row.height
    return sheet


def side_by_side(videos: Mapping[str, Video]) -> UInt8[np.ndarray, "t i j 3"]:
    """Videos of one size as one, each under its name. Raises ValueError if there is none."""
    if not videos:
        raise ValueError("there are no videos to show; give at least one.")
    font = ImageFont.load_default(13)
    large = {name: enlarged(video, WATCHABLE // 2) for name, video in videos.items()}
    width = next(iter(large.values())).shape[2]
    band = Image.new("RGB", (width * len(large), _LINE), "white")
    for column, name in enumerate(large):
        ImageDraw.Draw(band).text((column * width + _LABEL // 2, 1), name, fill="black", font=font)
    frames = np.concatenate(list(large.values()), axis=2)
    bands = np.broadcast_to(np.asarray(band), (len(frames), *np.asarray(band).shape))
    return np.concatenate([bands, frames], axis=1)


def _row(video: Video) -> Image.Image:
    """Some frames of a video side by side, small ones enlarged and large ones made smaller."""
    count = min(len(video), _MOST_FRAMES)
    chosen = np.linspace(0, len(video) - 1, count).round().astype(int)
    frames, shortest = video[chosen], min(video.shape[1:3])
    if shortest <= _TILE:
        factor = _TILE // shortest
        return Image.fromarray(strip(frames.repeat(factor, axis=1).repeat(factor, axis=2)))
    size = tuple(round(side * _TILE / shortest) for side in video.shape[2:0:-1])
    tiles = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames]
    return Image.fromarray(strip(np.stack(tiles)))
