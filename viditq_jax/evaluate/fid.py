"""Frechet distance of the features of two sets of pictures: how far what a model draws is from a reference.

By the packaged metric network, whose features are those of emoji: no figure is comparable with the FID of
papers, which is of InceptionV3. `Frechet` takes any other features.
Source: Heusel et al., arXiv 1706.08500, equation 6.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, UInt8

from viditq_jax.evaluate._network import picture_features

UNIT = "emoji_features"
BETTER = "lower"

Picture = UInt8[np.ndarray, "_ _ 3"]  # of any size each


class Moments(NamedTuple):
    """Number of samples, and the sums of their features and of the features' outer products, in float64."""

    samples: int
    total: np.ndarray  # [d]
    outer: np.ndarray  # [d d]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Those of some samples."""
        x = features.astype(np.float64)
        return cls(len(x), x.sum(0), x.T @ x)

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Of the samples."""
        mean: np.ndarray = self.total / self.samples
        return mean

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Unbiased."""
        centered: np.ndarray = self.outer - self.samples * np.outer(self.mean, self.mean)
        return centered / (self.samples - 1)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)) of two Gaussians with these moments; exact, float64.

    tr (A B)^(1/2) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric.
    Raises ValueError where a set has not more samples than features: its covariance has no full rank.
    """
    width = len(a.total)
    few = min(a.samples, b.samples)
    if few <= width:
        raise ValueError(
            f"FID of {width} features needs at least {width + 1} pictures a set, got {few}; make more."
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ b.covariance @ root)
    mixed = np.sqrt(product.clip(0)).sum()
    apart = np.square(a.mean - b.mean).sum()
    return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * mixed)


def fid(ours: Float[np.ndarray, "n d"], theirs: Float[np.ndarray, "m d"]) -> float:
    """The Frechet distance of two sets of features; not below 0, but for rounding."""
    return frechet_distance(Moments.of(ours), Moments.of(theirs))


class State(NamedTuple):
    """The moments of the pictures, and of those they are compared with; None of no pictures."""

    ours: Moments | None = None
    theirs: Moments | None = None


def _joined(a: Moments | None, b: Moments | None) -> Moments | None:
    if a is None or b is None:
        return a or b
    return Moments(a.samples + b.samples, a.total + b.total, a.outer + b.outer)


@dataclasses.dataclass(frozen=True)
class Frechet:
    """A metric by some network's features: pictures -> [n, d]."""

    features: Callable[[list[Picture]], Float[np.ndarray, "n d"]]

    def empty(self) -> State:
        """Nothing seen yet."""
        return State()

    def update(self, state: State, sample: Picture, expected: Picture) -> State:
        """Add a picture to each set; they need not belong together."""
        ours, theirs = (Moments.of(row[None]) for row in self.features([sample, expected]))
        return self.merge(state, State(ours, theirs))

    def merge(self, a: State, b: State) -> State:
        """Two measurements as one."""
        return State(_joined(a.ours, b.ours), _joined(a.theirs, b.theirs))

    def finish(self, state: State) -> float:
        """The distance. Raises ValueError if there were not more pictures than features."""
        if state.ours is None or state.theirs is None:
            raise ValueError("nothing was measured; give the pictures of both sets.")
        return frechet_distance(state.ours, state.theirs)


METRIC = Frechet(picture_features)
