"""LPIPS of two pictures, averaged over pairs; needs weights, of which none are packaged.

`viditq evaluate OUT --metrics lpips=FILE`, where FILE is the state dict of `lpips.LPIPS(net="alex")` on this
machine, the variant that papers evaluate by. Nothing is downloaded. Source: arXiv 1801.03924, version 0.1 of
the weights.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._lpips import SMALLEST, read
from viditq_jax.evaluate._pairs import PairMean
from viditq_jax.net import Net

UNIT = ""
BETTER = "lower"
WEIGHTS = "the state dict of lpips.LPIPS(net='alex') in a file"


@dataclasses.dataclass(frozen=True)
class Lpips:
    """The distance of two pictures by weights that were read; of videos the mean over frames."""

    net: Net

    def __call__(
        self, picture: UInt8[np.ndarray, "*t h w 3"], expected: UInt8[np.ndarray, "*t h w 3"]
    ) -> float:
        h, w = picture.shape[-3:-1]
        if min(h, w) < SMALLEST:
            raise ValueError(f"LPIPS needs {SMALLEST} pixels a side at least, got {h}x{w}; leave it out.")
        rows = zip(picture.reshape(-1, 1, h, w, 3), expected.reshape(-1, 1, h, w, 3), strict=True)
        return float(np.mean([_distance(self.net, _pixels(a), _pixels(b)) for a, b in rows]))


def _pixels(picture: np.ndarray) -> np.ndarray:
    return picture.astype(np.float32) / np.float32(127.5) - 1


_distance = jax.jit(lambda net, a, b: net(a, b)[0])


@functools.lru_cache(maxsize=2)
def load(weights: str) -> PairMean:
    """The metric by the weights in a file. Raises ValueError that says what of it cannot be read."""
    return PairMean(Lpips(read(Path(weights))))
