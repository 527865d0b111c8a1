"""Channel balancing by scaling: outliers move between input and weight.

    inputs x / s      weight W * s      s = amax^alpha / wmax^(1 - alpha), for each input channel

alpha is SmoothQuant's, and that of the first ViDiT-Q release: 0 flattens the weight, 1 flattens the input.
The second release writes 1 - alpha (and multiplies by 1 / s): its 0.75 is 0.25 here.
Source: SmoothQuant, arXiv 2211.10438; the static part of ViDiT-Q's balancing, arXiv 2406.02540.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from viditq_jax.quant.stats import LayerStats

NEEDS_STATS = True
STATISTICS = ("max", "moving", "initial")
FLOOR = 1e-3  # of the largest of a layer: what a channel counts at least, so that none is blown up


@dataclasses.dataclass(frozen=True)
class Options:
    """How amax is measured, and what balances it.

    statistic: "max", the largest |x| of all calls; "moving", the release's average with decay 0.95 of the
        largest over tokens, averaged over samples; "initial", the largest |x| of the first denoising step, as
        the paper describes it.
    ranges: a factor, and so a weight, for each range of the recipe.
    """

    alpha: float = 0.5
    statistic: str = "max"
    ranges: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"balance: alpha is {self.alpha}; it lies in [0, 1].")
        if self.statistic not in STATISTICS:
            raise ValueError(f"balance: statistic {self.statistic!r}; choose {', '.join(STATISTICS)}.")
        if self.ranges and self.statistic == "initial":
            raise ValueError("balance: the first step lies in one range; use max or moving with ranges.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Balance:
    """Divides each input channel by its factor."""

    scale: Any  # [k] float32
    elementwise: ClassVar[bool] = True

    def inputs(self, x: Float[Array, "... k"]) -> Float[Array, "... k"]:
        """x / s in float32."""
        return x.astype(jnp.float32) / self.scale

    def weight(self, w: Float[Array, "n k"]) -> Float[Array, "n k"]:
        """W * s in float32."""
        return w.astype(jnp.float32) * self.scale


def misfit(k: int, options: Options) -> str | None:
    """Nothing is."""
    del k, options
    return None


def fit(
    weight: Float[Array, "n k"], stats: LayerStats | None, options: Options, *, path: str = ""
) -> Balance:
    """The factors for a weight and its inputs; statistics of several ranges count as one."""
    if stats is None or stats.low is None:
        raise ValueError(f"{path}: balance needs the statistics of its inputs; put it before a rotation.")
    amax = {
        "max": stats.absmax.max(0),
        "moving": stats.moving.value.max(0),
        "initial": stats.initial,
    }[options.statistic]
    return Balance(balance_scale(amax, jnp.abs(weight).max(0), options.alpha))


def balance_scale(
    x_absmax: Float[Array, " k"], w_absmax: Float[Array, " k"], alpha: float
) -> Float[Array, " k"]:
    """The factor s of each input channel, > 0: (x / s) @ (s * W) equals x @ W.

    x_absmax: largest |x| of each channel. w_absmax: largest |W| of each channel, over all outputs.
    Both count as at least 1e-3 of their largest; all as 1 where all are 0.
    """
    amax, wmax = (_floored(each.astype(jnp.float32)) for each in (x_absmax, w_absmax))
    return amax**alpha / wmax ** (1 - alpha)


def _floored(x: Float[Array, " k"]) -> Float[Array, " k"]:
    largest = x.max()
    return jnp.where(largest > 0, jnp.maximum(x, FLOOR * largest), 1)
