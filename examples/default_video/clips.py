"""Emoji in motion: clips of 8 frames and their captions, "red apple moving left on a yellow background".

An icon is drawn large once and then moved, scaled and turned by less than pixels. Place, size and pace vary
little around what the motion says: a thousand steps are enough to learn one way to move, and not many.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from default_model.data import COLOURS, SIDE, Icon, background, picture
from numpy.random import Generator

FRAMES = 8
BACKGROUNDS = ("white", "yellow", "green", "blue", "pink")
WHITE = 0.6  # share of the clips that are on white; the others share the rest
STYLE = "noto"
# What the image model's demonstrations ask for first; more of them would each be shown less.
SUBJECTS = (
    "red-apple", "dog-face", "blue-heart", "pizza", "strawberry", "panda", "sunflower", "hamburger",
    "grinning-face", "lion", "cactus", "watermelon", "fox", "doughnut", "rabbit-face", "tiger-face",
)  # fmt: skip

# Films are made of the motions on the left. Run backwards, they show those on the right.
FILMED = {
    "moving right": "moving left", "moving down": "moving up", "growing": "shrinking",
    "spinning": None, "bouncing": None,
}  # fmt: skip
MOTIONS = (*FILMED, *(name for name in FILMED.values() if name))
_DRAWN = 3 * SIDE  # pixels of the side that icons are drawn with, averaged down to SIDE


@dataclasses.dataclass(frozen=True)
class Track:
    """Where an icon is in every frame: its middle, right and down, and its side, all in sides of the picture;
    and its turn in degrees, clockwise. Each is [FRAMES].
    """

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    turn: np.ndarray

    def reversed(self) -> "Track":
        """The same, run backwards."""
        return Track(self.x[::-1], self.y[::-1], self.size[::-1], self.turn[::-1])


def track(motion: str, random: Generator) -> Track:
    """A track that shows a motion."""
    if motion not in FILMED:
        forward = next((name for name, back in FILMED.items() if back == motion), None)
        if forward is None:
            raise ValueError(f"no motion {motion!r}; choose one of {', '.join(MOTIONS)}.")
        return track(forward, random).reversed()
    still = np.full(FRAMES, 1.0)
    time = np.linspace(0, 1, FRAMES)
    x, y = (0.5 + random.uniform(-0.02, 0.02) * still for _ in range(2))
    turn = random.uniform(-3, 3) * still
    size = random.uniform(0.58, 0.62) * still
    way = random.uniform(0.46, 0.50) * (time - 0.5)
    if motion == "moving right":
        x = x + way
    elif motion == "moving down":
        y = y + way
    elif motion == "growing":
        size = random.uniform(0.30, 0.34) + random.uniform(0.56, 0.60) * time
    elif motion == "spinning":
        size = random.uniform(0.73, 0.77) * still
        turn = turn + random.uniform(29, 31) * np.arange(FRAMES)
    else:  # two bounces, from the floor to the floor
        size = random.uniform(0.50, 0.54) * still
        y = 0.97 - size / 2 - random.uniform(0.38, 0.42) * np.abs(np.sin(2 * np.pi * time))
    return Track(x, y, size, turn)


def film(image: Any, track: Track) -> np.ndarray:
    """The icon's `picture` along a track, premultiplied RGBA, uint8 [FRAMES, SIDE, SIDE, 4]."""
    from PIL import Image

    source = image.convert("RGBa")  # premultiplied: transparent pixels do not bleed into edges
    frames = []
    for x, y, size, turn in zip(track.x, track.y, track.size, np.radians(track.turn), strict=True):
        # To a pixel of the frame belongs that of the picture: turned back and scaled around the middle.
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / size
        offset = source.width / 2 - matrix @ (np.array([x, y]) * _DRAWN)
        rows = np.concatenate([matrix, offset[:, None]], axis=1)
        moved = source.transform(
            (_DRAWN, _DRAWN), Image.Transform.AFFINE, tuple(rows.ravel()), Image.Resampling.BILINEAR
        )
        pixels = np.asarray(moved, np.float32).reshape(SIDE, 3, SIDE, 3, 4)
        frames.append(np.round(pixels.mean(axis=(1, 3))).astype(np.uint8))
    return np.stack(frames)


def over(frames: np.ndarray, colour: str) -> np.ndarray:
    """Frames of `film` on a background, float32 [FRAMES, SIDE, SIDE, 3] in [-1, 1]."""
    alpha = frames[..., 3:].astype(np.float32) / 255
    return (frames[..., :3] + (1 - alpha) * np.array(COLOURS[colour], np.float32)) / 127.5 - 1


def clip(icon: Icon, motion: str, colour: str, random: Generator) -> np.ndarray:
    """One clip, float32 [FRAMES, SIDE, SIDE, 3] in [-1, 1]."""
    return over(film(picture(icon, _DRAWN), track(motion, random)), colour)


def caption(subject: str, motion: str, colour: str) -> str:
    """As in "red apple moving left on a yellow background"; white goes without saying."""
    return f"{subject} {motion}{background(colour)}"


def subjects(icons: list[Icon]) -> list[Icon]:
    """The icons of SUBJECTS in their order."""
    found = {icon.subject: icon for icon in icons if icon.style == STYLE}
    return [found[subject] for subject in SUBJECTS]


def held_out(count: int, *, seed: int = 0) -> np.ndarray:
    """Which (subject, motion) pairs are never shown, bool [subjects, motions]: one subject a motion."""
    chosen = np.random.default_rng(seed).permutation(count)[: len(MOTIONS)]
    held = np.zeros((count, len(MOTIONS)), bool)
    held[chosen, np.arange(len(chosen))] = True
    return held


@dataclasses.dataclass(frozen=True)
class Films:
    """All films: their frames' latents, and what they show.

    latents: float16 [subjects, len(FILMED), variants, FRAMES, 16, 16, 4].
    colours: int [subjects, len(FILMED), variants], into BACKGROUNDS.
    """

    latents: np.ndarray
    colours: np.ndarray


def make(
    icons: list[Icon], encode: Callable[[np.ndarray], Any], file: Path, *, variants: int, seed: int = 0
) -> Films:
    """Film every subject, `variants` times a motion, and encode the frames.

    file: what files of latents begin with; one a subject, and what is there already is read.
    encode: float32 [FRAMES, SIDE, SIDE, 3] to latents [FRAMES, 16, 16, 4].
    """
    from rich.progress import track as progress

    file.parent.mkdir(parents=True, exist_ok=True)
    share = [WHITE, *[(1 - WHITE) / (len(BACKGROUNDS) - 1)] * (len(BACKGROUNDS) - 1)]
    parts, colours = [], []
    for i, icon in enumerate(progress(icons, "filming")):
        random = np.random.default_rng((seed, i))
        drawn = random.choice(len(BACKGROUNDS), (len(FILMED), variants), p=share)
        part = file.with_suffix(f".{variants}x{i}.npy")
        if not part.exists():
            image = picture(icon, _DRAWN)
            shots = [
                over(film(image, track(motion, random)), BACKGROUNDS[colour])
                for motion, row in zip(FILMED, drawn, strict=True)
                for colour in row
            ]
            latents = np.concatenate([np.asarray(encode(shot), np.float16) for shot in shots])
            latents = latents.reshape(len(FILMED), variants, FRAMES, *latents.shape[1:])
            with (temporary := part.with_suffix(".part")).open("wb") as stream:
                np.save(stream, latents)
            temporary.replace(part)
        parts.append(np.load(part))
        colours.append(drawn)
    return Films(np.stack(parts), np.stack(colours))
