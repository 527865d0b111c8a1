"""What moves in a clip, read from its pixels: does a video do what its prompt says?

Whatever differs from the plain background is the object. Its middle, its size and its turn from frame to
frame are measured, each against what the clips of the training data do; the greatest one names the motion.
"""

import dataclasses

import numpy as np
from default_video.clips import FRAMES

DIFFERENT = 0.25  # from the background, in a range of 2: more than noise of the decoder, less than an outline
# What the tracks of the data do on average; a motion that is less than LEAST of that is none.
ACROSS, GROWTH, HEIGHT, TURN = 0.48, float(np.log(0.90 / 0.32)), 0.40, 30.0
LEAST = 0.4
_ANGLES = np.arange(0, 360, 5)
_TURNS = np.arange(-60, 61, 5)
_BOUNCES = np.abs(np.sin(2 * np.pi * np.linspace(0, 1, FRAMES)))


@dataclasses.dataclass(frozen=True)
class Reading:
    """How much of each motion a clip has; 1 is what the data has on average.

    right, down: of the way across. growth: of the logarithm of the size. bounce: of the height of two
    bounces. turn: of the turn a frame, clockwise; 0 where the object looks no more alike when turned.
    """

    right: float
    down: float
    growth: float
    bounce: float
    turn: float

    @property
    def motion(self) -> str:
        """The name of the motion, or "none"."""
        scores = {
            "moving right": self.right, "moving left": -self.right, "moving down": self.down,
            "moving up": -self.down, "growing": self.growth, "shrinking": -self.growth,
            "bouncing": self.bounce, "spinning": self.turn,
        }  # fmt: skip
        best = max(scores, key=lambda name: scores[name])
        return best if scores[best] >= LEAST else "none"


def read(clip: np.ndarray) -> Reading:
    """Measure a clip [FRAMES, h, w, 3] in [-1, 1]; a clip without an object in every frame shows nothing."""
    edges = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], axis=1)
    difference = clip - np.median(edges.reshape(-1, 3), axis=0)
    masks = np.abs(difference).max(axis=-1) > DIFFERENT  # [t, h, w]
    area = masks.sum(axis=(1, 2))
    if area.min() < 4:
        return Reading(0.0, 0.0, 0.0, 0.0, 0.0)
    rows, columns = np.indices(masks.shape[1:])
    y, x = ((masks * axis).sum(axis=(1, 2)) / area for axis in (rows, columns))
    size = np.sqrt(area)
    wave = _BOUNCES - _BOUNCES.mean()
    return Reading(
        right=_change(x) / clip.shape[2] / ACROSS,
        down=_change(y) / clip.shape[1] / ACROSS,
        growth=_change(np.log(size)) / GROWTH,
        bounce=float(-(y / clip.shape[1]) @ wave / (wave @ wave) / HEIGHT),
        turn=_turn(difference, y, x, size) / TURN,
    )


def _change(values: np.ndarray) -> float:
    """From the first frame to the last, on the straight line nearest to all."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0] * (len(values) - 1))


def _turn(difference: np.ndarray, y: np.ndarray, x: np.ndarray, size: np.ndarray) -> float:
    """Degrees a frame at which each frame looks most like the one before; 0 where it does not look more
    alike than unturned.
    """
    from scipy.ndimage import map_coordinates

    around = np.radians(_ANGLES)
    rings = np.linspace(0.15, 0.6, 6)[:, None]  # in sizes
    polar = []
    for frame, row, column, side in zip(difference, y, x, size, strict=True):
        places = [row + rings * side * np.sin(around), column + rings * side * np.cos(around)]
        polar.append([map_coordinates(part, places, order=1) for part in np.moveaxis(frame, -1, 0)])
    rings_of = np.array(polar)  # [t, 3, rings, angles]; rows go down, so angles go clockwise

    def likeness(turn: int) -> float:
        turned = np.roll(rings_of[:-1], turn // 5, axis=-1)
        return float(np.corrcoef(turned.ravel(), rings_of[1:].ravel())[0, 1])

    alike = np.array([likeness(turn) for turn in _TURNS])
    best = int(alike.argmax())
    return float(_TURNS[best]) if alike[best] > likeness(0) + 0.02 else 0.0
