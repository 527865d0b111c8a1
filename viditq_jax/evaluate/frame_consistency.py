"""How alike successive frames of a video are, averaged over videos: it needs no reference.

A still video has 1, and a video that moves less: compare it with the figure of the float videos.
"""

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._flow import check_video
from viditq_jax.evaluate._pairs import PairMean
from viditq_jax.evaluate.ssim import ssim

UNIT = ""
BETTER = "higher"
ALONE = True


def frame_consistency(
    video: UInt8[np.ndarray, "t h w 3"], expected: UInt8[np.ndarray, "t h w 3"] | None = None
) -> float:
    """Mean structural similarity of successive frames; `expected` is not looked at."""
    del expected
    check_video(video, "frame_consistency")
    return ssim(video[1:], video[:-1])


METRIC = PairMean(frame_consistency)
