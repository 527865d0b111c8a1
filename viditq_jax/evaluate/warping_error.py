"""How much of a video changes along the motion of the reference, averaged over pairs.

The float video has a warping error too, as light changes and flow is not perfect: compare with its figure.
Source: Lai et al., arXiv 1808.00449, section 4.2. Differs: the flow is that of the reference, so that all
variants are judged by one motion; absolute instead of squared differences.
"""

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._flow import check_video, flows, reduced, seen_again, warped
from viditq_jax.evaluate._pairs import PairMean

UNIT = "levels"
BETTER = "lower"


def warping_error(video: UInt8[np.ndarray, "t h w 3"], expected: UInt8[np.ndarray, "t h w 3"]) -> float:
    """Mean |frame - next frame, read where the flow leads| over places that the next frame still shows.

    In levels of 0 to 255.
    """
    check_video(video, "warping_error")
    frames, errors = reduced(video), []
    for i, (forward, backward) in enumerate(zip(*flows(expected), strict=True)):
        seen = seen_again(forward, backward)
        if seen.any():
            errors.append(np.abs(frames[i] - warped(frames[i + 1], forward))[seen].mean())
    return float(np.mean(errors)) if errors else 0.0


METRIC = PairMean(warping_error)
