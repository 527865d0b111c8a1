"""Noise schedules and the timesteps at which a sampler visits them, in float64 NumPy.

A variance-preserving (VP) schedule mixes x = sqrt(a) x0 + sqrt(1 - a) noise, a = alphas_cumprod[t]; a flow
mixes x = (1 - sigma) x0 + sigma noise. Everything here runs once, before the sampling loop is compiled.
"""

import dataclasses
import difflib
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("K", "ddimK", "linspace", "leading", "trailing")
PREDICTIONS = ("epsilon", "v_prediction")
FLOW_SPACINGS = ("uniform", "training")
MOST_STEPS = 100_000  # a hundred times as many as any model was trained with; tables are as long


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError, with the nearest allowed value, if `value` is not one of `allowed`."""
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}{hint}")


def check_steps(steps: int) -> None:
    """Raise ValueError if there is nothing to do."""
    if not 1 <= steps <= MOST_STEPS:
        raise ValueError(f"asked for {steps} sampling steps; at least 1 is needed, and {MOST_STEPS} at most.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPSchedule:
    """The noise schedule a model was trained with; VP samplers inherit these fields.

    The defaults are those of DiT, PixArt, STDiT and Latte. beta_start and beta_end are not used by
    "squaredcos_cap_v2".
    """

    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        check_choice("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"betas {self.beta_start} to {self.beta_end}: need 0 < beta_start <= beta_end < 1."
            )
        if not 1 <= self.num_train_timesteps <= MOST_STEPS:
            raise ValueError(
                f"num_train_timesteps is {self.num_train_timesteps}; at least 1 is needed, and {MOST_STEPS}"
                f" at most."
            )

    def betas(self) -> Float[np.ndarray, " n"]:
        """The variance that each of the n training steps adds."""
        n = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, n, dtype=np.float64)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, n, dtype=np.float64) ** 2
        alpha_bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)

    def alphas_cumprod(self) -> Float[np.ndarray, " n"]:
        """The share of the signal's variance that is left at each training timestep."""
        return np.cumprod(1 - self.betas())


def timesteps(
    spacing: str, count: int, num_train: int = 1000, *, steps_offset: int = 0
) -> Int[np.ndarray, " k"]:
    """`count` of the `num_train` training timesteps, falling.

    spacing: "K" and "ddimK" are the respacings of the original codes: evenly from first to last, summed in
    floating point and rounded half to even; or the smallest whole stride that gives exactly `count`.
    "linspace", "leading" and "trailing" are those of diffusers (table 2 of arXiv 2305.08891); `steps_offset`
    shifts "leading" alone.
    Raises ValueError for a count outside 1..num_train or that no stride gives ("ddimK"), and for an offset
    that is not used or leads past the last training timestep.
    """
    check_steps(count)
    if count > num_train:
        raise ValueError(f"asked for {count} distinct timesteps, but the model was trained with {num_train}.")
    if steps_offset and spacing != "leading":
        raise ValueError(
            f"steps_offset={steps_offset} is used by the spacing 'leading' alone, not by {spacing!r}."
        )
    if spacing == "K":
        return _accumulated(count, num_train)
    if spacing == "ddimK":
        return _strided(count, num_train)
    if spacing == "linspace":
        return np.linspace(0, num_train - 1, count).round().astype(np.int64)[::-1]
    if spacing == "trailing":
        # np.arange, not an exact product: the rounding of its sums decides ties as in diffusers.
        return np.arange(num_train, 0, -num_train / count)[:count].round().astype(np.int64) - 1
    times = np.arange(count)[::-1] * (num_train // count) + steps_offset
    if times[0] >= num_train:
        raise ValueError(
            f"steps_offset={steps_offset} with {count} timesteps leads to {times[0]}, past the last one, "
            f"{num_train - 1}; take fewer steps or a smaller offset."
        )
    return times


def _accumulated(count: int, num_train: int) -> np.ndarray:
    stride = (num_train - 1) / (count - 1) if count > 1 else 1.0
    times, position = [], 0.0
    for _ in range(count):
        times.append(round(position))
        position += stride  # summed, not multiplied: the last bits decide ties as in the original
    return np.array(times[::-1])


def _strided(count: int, num_train: int) -> np.ndarray:
    reachable = {len(range(0, num_train, stride)): stride for stride in range(num_train, 0, -1)}
    if count not in reachable:
        near = sorted(reachable, key=lambda other: abs(other - count))[:3]
        raise ValueError(
            f"no whole stride through {num_train} timesteps gives exactly {count}; nearest counts: "
            f"{', '.join(map(str, sorted(near)))}. Take one of these, or the spacing 'K'."
        )
    return np.arange(0, num_train, reachable[count])[::-1]


def to_data(prediction: str, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (p, q) of x0 = p x + q out, at signal share a."""
    if prediction == "epsilon":
        return 1 / np.sqrt(a), -np.sqrt(1 / a - 1)
    return np.sqrt(a), -np.sqrt(1 - a)


def to_noise(prediction: str, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (p, q) of noise = p x + q out, at signal share a."""
    if prediction == "epsilon":
        return np.zeros_like(a), np.ones_like(a)
    return np.sqrt(1 - a), np.sqrt(a)


def shift_sigmas(sigmas: np.ndarray | float, shift: float) -> np.ndarray:
    """s sigma / (1 + (s - 1) sigma): a shift above 1 spends more steps at high noise."""
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas), np.float64)


def flow_sigmas(
    spacing: str, steps: int, shift: float, num_train: int = 1000
) -> Float[np.ndarray, " k_plus_1"]:
    """Noise levels of a flow, falling from 1 to 0; one more than there are steps.

    spacing: "uniform" is 1, 1 - 1/K, ..., 1/K, then shifted (FLUX, HunyuanVideo, STDiT3). "training" is
    evenly spaced down to the *shifted* lowest training level, then shifted again (the list that diffusers
    takes for SD3).
    """
    check_steps(steps)
    lowest = 1 / steps if spacing == "uniform" else shift_sigmas(1 / num_train, shift)
    return np.append(shift_sigmas(np.linspace(1.0, lowest, steps), shift), 0.0)


def dynamic_shift(
    tokens: int, *, base_tokens: int = 256, max_tokens: int = 4096, base_mu: float = 0.5, max_mu: float = 1.15
) -> float:
    """The shift e^mu for an image of that many tokens.

    mu lies on the line through (base_tokens, base_mu) and (max_tokens, max_mu).
    Source: FLUX.1, whose sigma <- e^mu / (e^mu + 1/sigma - 1) is a shift by e^mu.
    """
    slope = (max_mu - base_mu) / (max_tokens - base_tokens)
    return math.exp(base_mu + slope * (tokens - base_tokens))


def video_shift(height: int, width: int, frames: int = 1) -> float:
    """The shift for a video of that many pixels and frames; one frame is an image.

    Raises ValueError for 2 to 16 frames: the temporal VAE makes 5 latent frames of every 17.
    Source: Open-Sora 1.2 (STDiT3).
    """
    if 1 < frames < 17:
        raise ValueError(f"{frames} frames have no shift: need 1 frame (an image) or at least 17.")
    return latent_video_shift(height, width, 1 if frames == 1 else 5 * (frames // 17))


def latent_video_shift(height: int, width: int, latent_frames: int) -> float:
    """`video_shift`, told the frames of the latents; only whole fives of them count.

    Raises ValueError for 2 to 4.
    """
    if 1 < latent_frames < 5:
        raise ValueError(f"{latent_frames} frames of latents have no shift: need 1 (an image) or at least 5.")
    counted = 1 if latent_frames == 1 else 5 * (latent_frames // 5)
    return math.sqrt(height * width / 512**2) * math.sqrt(counted)
