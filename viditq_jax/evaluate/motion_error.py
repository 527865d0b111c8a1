"""How far the motion of a video is from that of the reference, averaged over pairs: 0 if it moves alike.

What the next frame does not show has no motion that could be compared, nor has what is flat: neither counts.
"""

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._flow import check_video, factor_of, flows, forward_flow, grey, reduced, seen_again
from viditq_jax.evaluate._pairs import PairMean

UNIT = "px"
BETTER = "lower"


def motion_error(video: UInt8[np.ndarray, "t h w 3"], expected: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Mean distance of the ends of the flows of a frame, in pixels, weighted by the reference's contrast.

    Over places of the reference that its next frame still shows. 0 where there is none with contrast.
    """
    check_video(video, "motion_error")
    forward, backward = flows(expected)
    apart = np.sqrt(np.square(forward_flow(video) - forward).sum(1))  # [p, i, j]
    rows, columns = np.gradient(grey(reduced(expected))[:-1], axis=(1, 2))
    seen = np.stack([seen_again(*pair) for pair in zip(forward, backward, strict=True)])
    weight = np.hypot(rows, columns) * seen
    total = float(weight.sum())
    return factor_of(expected) * float((apart * weight).sum()) / total if total else 0.0


METRIC = PairMean(motion_error)
