"""Structural similarity of two 8-bit pictures or videos, averaged over pairs. Source: Wang et al., 2004."""

import numpy as np
from jaxtyping import UInt8
from skimage.metrics import structural_similarity

from viditq_jax.evaluate._pairs import PairMean

UNIT = ""
BETTER = "higher"


def ssim(picture: UInt8[np.ndarray, "*t h w 3"], expected: UInt8[np.ndarray, "*t h w 3"]) -> float:
    """Mean over pixels and colours, and over frames, with the Gaussian window of the paper (sigma 1.5); 1 for
    equal pictures.
    """
    if picture.ndim == 4:
        return float(np.mean([ssim(a, b) for a, b in zip(picture, expected, strict=True)]))
    return float(
        structural_similarity(
            picture,
            expected,
            channel_axis=-1,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


METRIC = PairMean(ssim)
