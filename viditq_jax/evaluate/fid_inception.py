"""The FID of papers: Frechet distance of InceptionV3's features; needs weights, of which none are packaged.

`viditq evaluate OUT --metrics fid_inception=FILE`, where FILE is pytorch-fid's
pt_inception-2015-12-05-6726825d.pth on this machine. Nothing is downloaded. Needs 2,049 pictures a set.
"""

import functools
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from viditq_jax.evaluate._inception import features, read, resized
from viditq_jax.evaluate.fid import Frechet

UNIT = ""
BETTER = "lower"
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth of pytorch-fid"


@functools.lru_cache(maxsize=2)
def load(weights: str) -> Frechet:
    """The metric by the weights in a file. Raises ValueError that says what of it cannot be read."""
    arrays = read(Path(weights))

    def seen(pictures: list[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n f"]:
        return np.concatenate([np.asarray(_features(arrays, picture)) for picture in pictures])

    return Frechet(seen)


@jax.jit
def _features(arrays: dict[str, jax.Array], picture: jax.Array) -> jax.Array:
    return features(arrays, resized(picture[None] / 127.5 - 1))
