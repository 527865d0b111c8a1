"""How restless the difference of two videos is, averaged over pairs: what quantization makes flicker.

An error that stays where it is, as another colour of something at rest, does not flicker.
"""

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._flow import check_video
from viditq_jax.evaluate._pairs import PairMean

UNIT = "levels"
BETTER = "lower"


def flicker(video: UInt8[np.ndarray, "t h w 3"], expected: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Mean |change of the error from frame to frame|, in levels of 0 to 255; 0 for equal videos."""
    check_video(video, "flicker")
    error = video.astype(np.float32) - expected.astype(np.float32)
    return float(np.abs(np.diff(error, axis=0)).mean())


METRIC = PairMean(flicker)
