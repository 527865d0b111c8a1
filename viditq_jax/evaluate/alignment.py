"""How well pictures show what their prompts say, to the packaged metric network; it needs no reference.

In the form of the CLIP score (arXiv 2104.08718) but not the CLIP score: the network knows single emoji alone.
"""

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from viditq_jax.evaluate._network import Pictures, caption_features, picture_features
from viditq_jax.evaluate._pairs import PairMean

UNIT = ""
BETTER = "higher"
CAPTION = True


def cosine_score(
    pictures: Float32[np.ndarray, "n f"], captions: Float32[np.ndarray, "n f"]
) -> Float64[np.ndarray, " n"]:
    """100 max(cos, 0) of each picture's and its caption's features."""
    x, y = (each.astype(np.float64) for each in (pictures, captions))
    cosines = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return 100 * cosines.clip(0)


def alignments(pictures: Pictures, captions: list[str]) -> Float64[np.ndarray, " n"]:
    """The score of each picture, 0 to 100."""
    return cosine_score(picture_features(pictures), caption_features(captions))


def alignment(picture: UInt8[np.ndarray, "h w 3"], caption: str) -> float:
    """The score of one picture, 0 to 100."""
    return float(alignments([picture], [caption])[0])


METRIC = PairMean(alignment)
