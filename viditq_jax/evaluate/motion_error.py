"""How far the motion of a video is from that of the reference, averaged over pairs: 0 if it moves alike."""

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._flow import check_video, factor_of, forward_flow, grey, reduced
from viditq_jax.evaluate._pairs import PairMean

UNIT = "px"
BETTER = "lower"


def motion_error(video: UInt8[np.ndarray, "t h w 3"], expected: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Mean distance of the ends of the flows of a frame, in pixels, weighted by the reference's contrast.

    Where nothing is to be seen there is no motion either. 0 for a reference without any contrast.
    """
    check_video(video, "motion_error")
    apart = np.sqrt(np.square(forward_flow(video) - forward_flow(expected)).sum(1))  # [p, i, j]
    rows, columns = np.gradient(grey(reduced(expected))[:-1], axis=(1, 2))
    contrast = np.hypot(rows, columns)
    total = float(contrast.sum())
    return factor_of(expected) * float((apart * contrast).sum()) / total if total else 0.0


METRIC = PairMean(motion_error)
