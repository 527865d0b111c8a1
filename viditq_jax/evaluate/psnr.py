"""Peak signal-to-noise ratio of two 8-bit pictures or videos, averaged over pairs."""

import math

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._pairs import PairMean

UNIT = "db"
BETTER = "higher"


def psnr(picture: UInt8[np.ndarray, "*t h w 3"], expected: UInt8[np.ndarray, "*t h w 3"]) -> float:
    """10 log10(255^2 / mean squared error of all frames), in decibels; infinite for equal pictures."""
    error = float(np.mean(np.square(picture.astype(np.float64) - expected.astype(np.float64))))
    return 10 * math.log10(255**2 / error) if error else math.inf


METRIC = PairMean(psnr)
