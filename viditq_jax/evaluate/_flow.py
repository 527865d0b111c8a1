"""Optical flow between the frames of a video, in grey, at about 128 pixels: where each place goes.

Iterative Lucas-Kanade of scikit-image: a frame of 64 pixels takes it about 40 ms on a CPU. Where a picture is
flat, flow is a guess.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy.ndimage import map_coordinates
from skimage.registration import optical_flow_ilk

Video = UInt8[np.ndarray, "t h w 3"]

_SHORTEST = 128  # pixels of the shorter side are averaged down to not much more
_WINDOW = 9  # the shorter side is this many times the radius in which places move alike


class Flows(NamedTuple):
    """Between successive frames, rows then columns, in pixels of the reduced frames."""

    forward: Float[np.ndarray, "p 2 i j"]
    backward: Float[np.ndarray, "p 2 i j"]


def check_video(video: np.ndarray, measure: str) -> None:
    """Raise ValueError for a picture, and for a video of a single frame."""
    if video.ndim != 4 or len(video) < 2:
        raise ValueError(f"{measure} is of videos of at least 2 frames; leave it out for pictures.")


def factor_of(video: Video) -> int:
    """Sides of the video in sides of its reduced frames."""
    return max(1, min(video.shape[1:3]) // _SHORTEST)


def reduced(video: Video) -> Float32[np.ndarray, "t i j 3"]:
    """Frames averaged down over squares, in levels of 0 to 255; what does not fill a square is left out."""
    factor = factor_of(video)
    t, h, w, _ = video.shape
    i, j = h // factor, w // factor
    squares = video[:, : i * factor, : j * factor].reshape(t, i, factor, j, factor, 3)
    return squares.astype(np.float32).mean((2, 4))


def grey(frames: Float32[np.ndarray, "t i j 3"]) -> Float32[np.ndarray, "t i j"]:
    """Brightness from 0 to 1. Source: ITU-R BT.601."""
    return (frames @ np.array([0.299, 0.587, 0.114], np.float32)) / 255


def forward_flow(video: Video) -> Float[np.ndarray, "p 2 i j"]:
    """From each frame to the next."""
    return _forward(video.tobytes(), video.shape)


def flows(video: Video) -> Flows:
    """From each frame to the next, and back."""
    backward = _forward(video[::-1].tobytes(), video.shape)[::-1]
    return Flows(forward_flow(video), backward)


@functools.lru_cache(maxsize=128)  # all variants of a run are compared with the same videos
def _forward(content: bytes, shape: tuple[int, ...]) -> Float[np.ndarray, "p 2 i j"]:
    frames = grey(reduced(np.frombuffer(content, np.uint8).reshape(shape)))
    radius = max(4, min(frames.shape[1:]) // _WINDOW)
    found = [optical_flow_ilk(a, b, radius=radius) for a, b in itertools.pairwise(frames)]
    return np.stack(found)


def warped(image: Float[np.ndarray, "i j c"], flow: Float[np.ndarray, "2 i j"]) -> np.ndarray:
    """The image read where the flow leads; linear between pixels, the border repeated."""
    places = np.indices(flow.shape[1:]) + flow
    channels = [
        map_coordinates(channel, places, order=1, mode="nearest") for channel in np.moveaxis(image, -1, 0)
    ]
    return np.stack(channels, -1)


def seen_again(
    forward: Float[np.ndarray, "2 i j"], backward: Float[np.ndarray, "2 i j"]
) -> Bool[np.ndarray, "i j"]:
    """Places that the next frame still shows: flow there and back ends where it began, and in the frame.

    Source: Lai et al., arXiv 1808.00449, equation 4 (the threshold of Ruder et al., arXiv 1604.08610).
    """
    back = np.moveaxis(warped(np.moveaxis(backward, 0, -1), forward), -1, 0)
    gap = np.square(forward + back).sum(0)
    near = gap <= 0.01 * (np.square(forward).sum(0) + np.square(back).sum(0)) + 0.5
    places = np.indices(forward.shape[1:]) + forward
    ends = np.array(forward.shape[1:])[:, None, None] - 1
    return near & ((places >= 0) & (places <= ends)).all(0)
