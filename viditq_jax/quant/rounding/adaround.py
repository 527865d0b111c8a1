"""AdaRound: whether numbers go up or down is learned, so that the errors of a row make up for each other.

Source: arXiv 2004.10568. A number w / scale becomes floor + h, with h = clip(sigmoid(v) * 1.2 - 0.1, 0, 1)
learned by Adam from the h that leaves w as it is. Minimised is, for each row,

    (w - q) G (w - q)^T / (the same with nearest rounding)  +  strength / k * sum of 1 - |2h - 1|^beta

The second term, without effect during the warm-up, drives h to 0 or 1: beta falls from 10, where only
undecided h feel it, to 2. Then v >= 0 rounds up. A row that ends worse than by nearest rounding is rounded to
nearest.

Differs from the paper: the error is that of the Gram matrix of all inputs, not of random batches; and both
terms are relative, so that one strength fits all layers. In the released code of ViDiT-Q this mode has no
effect.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Float32

from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.rounding import nearest, search
from viditq_jax.quant.rounding._grid import (
    best,
    code_range,
    columns_of,
    output_error,
    recoded,
    refuse,
    required,
)
from viditq_jax.quant.spec import Spec

NEEDS_GRAM = True
RANGES = ("nearest", "search")
GAMMA, ZETA = -0.1, 1.1  # the sigmoid is stretched to this interval, then clipped
FIRST_BETA, LAST_BETA, BETA_UNTIL = 10.0, 2.0, 0.9
_TINY = np.float32(1e-30)


@dataclasses.dataclass(frozen=True)
class Options:
    """iterations, rate: of Adam.

    strength: of the term that decides. warmup: the part of the iterations that goes without it.
    range: how scales are found: by the whole range ("nearest"), or by a search for the best ("search").
    """

    iterations: int = 300
    rate: float = 0.1
    strength: float = 30.0
    warmup: float = 0.2
    range: str = "search"

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations}; choose at least 1.")
        if not 0 < self.rate < math.inf or not 0 < self.strength < math.inf:
            raise ValueError(
                f"rate={self.rate} and strength={self.strength}; both must be finite and above 0."
            )
        if not 0 <= self.warmup < BETA_UNTIL:
            raise ValueError(f"warmup={self.warmup}; choose a part from 0 to below {BETA_UNTIL}.")
        if self.range not in RANGES:
            raise ValueError(f"range={self.range}; choose {' or '.join(RANGES)}.")


def fit(
    weight: Float[Array, "n k"],
    spec: Spec,
    gram: Float32[Array, "k k"] | None = None,
    options: Options = Options(),
) -> QTensor:
    """The weight in codes whose errors make up for each other; no row is worse than by nearest."""
    gram = required("adaround", gram)
    refuse("adaround", weight, spec)
    weight = weight.astype(jnp.float32)
    start = (search if options.range == "search" else nearest).fit(weight, spec, gram)
    return best(weight, gram, nearest.fit(weight, spec), _learned(weight, start, gram, options))


@partial(jax.jit, static_argnames="options")
def _learned(
    weight: Float32[Array, "n k"], start: QTensor, gram: Float32[Array, "k k"], options: Options
) -> QTensor:
    """The weight in the scales of `start`, each number in one of the two codes beside it."""
    scale = columns_of(start.scale, weight.shape)
    zero = 0 if start.zero is None else columns_of(start.zero, weight.shape).astype(jnp.float32)
    low, high = code_range(start.spec)
    levels = weight * (1 / scale)
    below = jnp.floor(levels)
    start_error = output_error(weight - start.dequantize(), gram)[:, None]

    def value(h: Float32[Array, "n k"]) -> Float32[Array, "n k"]:
        return (jnp.clip(below + zero + h, low, high) - zero) * scale

    def loss(v: Float32[Array, "n k"], i: Array) -> Array:
        h = up(v)
        error = weight - value(h)
        # The gradient of error @ gram * error is 2 error @ gram, so one product serves both.
        outputs = 2 * lax.stop_gradient(error @ gram) * error / jnp.maximum(start_error, _TINY)
        open_ = undecided(h, i / options.iterations, options.warmup)
        return outputs.sum() + options.strength / weight.shape[1] * open_

    adam = optax.adam(options.rate)

    def step(state: tuple[Array, optax.OptState], i: Array) -> tuple[tuple[Array, optax.OptState], None]:
        v, memory = state
        change, memory = adam.update(jax.grad(loss)(v, i), memory)
        return (v + change, memory), None

    v = v_of(levels - below)  # the h that leaves the weight as it is
    (v, _), _ = lax.scan(step, (v, adam.init(v)), jnp.arange(options.iterations))
    codes = jnp.clip(below + zero + (v >= 0), low, high).astype(jnp.int8)
    return recoded(start, codes)


def up(v: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """h: the part of a step by which each number is rounded up, 0 to 1."""
    return jnp.clip(jax.nn.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0, 1)


def v_of(h: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """The v that `up` makes h of."""
    return jnp.log((h - GAMMA) / (ZETA - h))


def undecided(h: Float[Array, "n k"], progress: Float[Array, ""], warmup: float) -> Float[Array, ""]:
    """The sum of 1 - |2h - 1|^beta: 0 where every h is 0 or 1.

    progress: part of the training that is done. Nothing before `warmup`; then beta falls from 10, where only
    numbers close to a code feel it, to 2 at 90 %.
    """
    part = (progress - warmup) / (BETA_UNTIL - warmup)
    beta = FIRST_BETA + (LAST_BETA - FIRST_BETA) * jnp.clip(part, 0, 1)
    return jnp.where(part >= 0, 1, 0) * jnp.sum(1 - jnp.abs(2 * h - 1) ** beta)
