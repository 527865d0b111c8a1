"""How different two pictures look to the packaged metric network, averaged over pairs.

Squared differences of unit-normalized features of four layers, in the form of LPIPS (arXiv 1801.03924) but
not LPIPS: another network, no learned weights of channels, and no human judgements behind it.
"""

import numpy as np
from jaxtyping import UInt8

from viditq_jax.evaluate._network import perceived
from viditq_jax.evaluate._pairs import PairMean

UNIT = ""
BETTER = "lower"


def perceptual(picture: UInt8[np.ndarray, "*t h w 3"], expected: UInt8[np.ndarray, "*t h w 3"]) -> float:
    """Mean over layers and pixels of the squared distance of unit features; 0 for equal pictures, 4 at most.

    Of videos the mean over frames.
    """
    both = perceived(np.concatenate([x.reshape(-1, *x.shape[-3:]) for x in (picture, expected)]))
    ours, theirs = np.split(both.astype(np.float64), 2)
    return float(np.square(ours - theirs).sum(1).mean())


METRIC = PairMean(perceptual)
