"""FLIP: the difference that a person sees when two pictures alternate in place; averaged over pairs.

By the package of its authors (the extra `metrics`), at 67 pixels a degree: a screen of 0.7 m width and 3840
pixels, seen from 0.7 m. Source: Andersson et al., 2020, doi 10.1145/3406183.
"""

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._pairs import PairMean

UNIT = ""
BETTER = "lower"


def flip(picture: UInt8[np.ndarray, "*t h w 3"], expected: UInt8[np.ndarray, "*t h w 3"]) -> float:
    """Mean over pixels, and over frames of a video; from 0, equal, to 1.

    Raises ModuleNotFoundError without the package.
    """
    try:
        import flip_evaluator
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "flip needs the package flip-evaluator; install it by `pip install 'viditq-jax[metrics]'`."
        ) from error
    if picture.ndim == 4:
        return float(np.mean([flip(a, b) for a, b in zip(picture, expected, strict=True)]))
    ours, theirs = (each.astype(np.float32) / 255 for each in (picture, expected))
    _, mean, _ = flip_evaluator.evaluate(theirs, ours, "LDR", applyMagma=False)
    return float(mean)


METRIC = PairMean(flip)
