"""What a search compares: samples of one set of conditions, and measures of how far two of them are apart.

The measures are squared relative distances, which add up over small errors that have nothing to do with
each other. Those of a group stand for what a network would say of it; where a user has the weights of one
(CLIP, ImageReward, DOVER), its score of the pictures is passed to `search` in their place.
"""

import dataclasses
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.search.sensitivity import Metric

POOL = 4  # latents a side that "structure" averages


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a pipeline made: metrics take the latents, or the pictures, which are decoded when asked for."""

    pipeline: Pipeline
    latents: Float[np.ndarray, "n *t h w c"]

    @cached_property
    def pictures(self) -> UInt8[np.ndarray, "n *t i j 3"]:
        """Pixels of the latents."""
        return np.concatenate([self.pipeline.decode(jnp.asarray(one[None])) for one in self.latents])


def latent(samples: Samples, reference: Samples) -> float:
    """Squared distance of the latents over their squared size, averaged over samples."""
    return _relative(samples.latents, reference.latents)


def structure(samples: Samples, reference: Samples) -> float:
    """`latent` of averages over 4 x 4: what is where. Stands for text alignment while no network measures
    it.
    """
    return _relative(_pooled(samples.latents), _pooled(reference.latents))


def detail(samples: Samples, reference: Samples) -> float:
    """`latent` of what such averages leave: textures and edges. Stands for visual quality likewise."""
    return _relative(_rest(samples.latents), _rest(reference.latents))


def motion(samples: Samples, reference: Samples) -> float:
    """`latent` of the differences of neighbouring frames. Stands for temporal consistency likewise."""
    return _relative(np.diff(samples.latents, axis=1), np.diff(reference.latents, axis=1))


METRICS: dict[str, Metric] = {"latent": latent, "structure": structure, "detail": detail}
VIDEO_METRICS: dict[str, Metric] = {**METRICS, "motion": motion}


def apart(a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, " n"]:
    """Relative L2 distance of each sample."""
    x, r = (each.reshape(len(each), -1).astype(np.float64) for each in (a, b))
    return np.linalg.norm(x - r, axis=1) / np.maximum(np.linalg.norm(r, axis=1), 1e-30)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean(np.square(apart(a, b))))


def _pooled(x: np.ndarray) -> np.ndarray:
    """Averages over squares of each frame; sides that squares do not fill are cut."""
    *lead, h, w, c = x.shape
    a, b = min(POOL, h), min(POOL, w)
    cut = x[..., : h // a * a, : w // b * b, :]
    return cut.reshape(*lead, h // a, a, w // b, b, c).mean((-4, -2))


def _rest(x: np.ndarray) -> np.ndarray:
    """What the averages leave."""
    h, w = x.shape[-3:-1]
    a, b = min(POOL, h), min(POOL, w)
    cut = x[..., : h // a * a, : w // b * b, :]
    return cut - _pooled(x).repeat(a, axis=-3).repeat(b, axis=-2)
