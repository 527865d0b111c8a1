"""DPM-Solver++(2M): second-order multistep in the log signal-to-noise ratio, on the predicted data."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from viditq_jax.sampling.sample import split_variance
from viditq_jax.sampling.schedule import (
    PREDICTIONS,
    VPSchedule,
    check_choice,
    check_steps,
    timesteps,
    to_data,
)

GRIDS = ("continuous", "integer")
GRID_SPACINGS = ("linspace", "leading", "trailing")
FINAL_SIGMAS = ("zero", "sigma_min")

# The original code cuts a schedule below this log signal-to-noise ratio and stretches what is left.
LOWEST_LAMBDA = -5.1


@dataclasses.dataclass(frozen=True)
class DPMSolver(VPSchedule):
    """x' = (s'/s) x - alpha' (e^-h - 1) D, D = x0 + h / (2 h_before) (x0 - x0_before); first order is D = x0.

    alpha = sqrt(a), s = sqrt(1 - a), h = the change of ln(alpha / s). Source: arXiv 2211.01095, algorithm 2.
    grid: "continuous" is the original code (PixArt, Open-Sora): fractional times, even from the last training
    timestep to the first, where it ends; "integer" is diffusers: whole timesteps of the given `spacing`,
    ending at `final_sigma`. They are not the same sampler. `spacing`, `steps_offset` and `final_sigma` belong
    to "integer" alone.
    lower_order_final: the last step is of first order; on the integer grid for fewer than 15 steps. The first
    step is always of first order, and so is a last step to zero noise.
    """

    grid: str = "continuous"
    spacing: str = "linspace"
    steps_offset: int = 0
    prediction: str = "epsilon"
    final_sigma: str = "zero"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("grid", self.grid, GRIDS)
        check_choice("spacing", self.spacing, GRID_SPACINGS)
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("final_sigma", self.final_sigma, FINAL_SIGMAS)

    def table(self, steps: int) -> dict[str, np.ndarray]:
        """x0 = x0_on_x x + x0_on_out out; D = x0 + slope (x0 - x0_before); x' = on_x x + on_data D."""
        check_steps(steps)
        times, a = self._continuous(steps) if self.grid == "continuous" else self._integer(steps)
        alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
        decay = sigma[1:] * alpha[:-1] / (sigma[:-1] * alpha[1:])  # e^-h
        slope = np.zeros(steps)
        second = slice(1, steps - 1 if self._first_order_last(steps) else steps)
        h = -np.log(decay[: second.stop])
        slope[second] = h[1:] / (2 * h[:-1])
        x0_on_x, x0_on_out = to_data(self.prediction, a[:-1])
        columns = {
            "t": times,
            "x0_on_x": x0_on_x,
            "x0_on_out": x0_on_out,
            "slope": slope,
            "on_x": sigma[1:] / sigma[:-1],
            "on_data": alpha[1:] * (1 - decay),
        }
        return {name: column.astype(np.float32) for name, column in columns.items()}

    def _continuous(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        n = self.num_train_timesteps
        log_alpha = np.cumsum(np.log1p(-self.betas())) / 2
        lowest = log_alpha[-1] - np.log(-np.expm1(2 * log_alpha[-1])) / 2
        if lowest < LOWEST_LAMBDA:
            raise ValueError(
                f"the continuous grid needs ln(alpha / sigma) >= {LOWEST_LAMBDA}, but {self.beta_schedule!r} "
                f"with {n} timesteps falls to {lowest:.2f}; take grid='integer'."
            )
        s = np.linspace(1, 1 / n, steps + 1)
        times = (s[:-1] - 1 / n) * n
        return times, np.exp(2 * np.interp(s, np.arange(1, n + 1) / n, log_alpha))

    def _integer(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        n = self.num_train_timesteps
        if self.spacing == "trailing":
            times = timesteps(self.spacing, steps, n, steps_offset=self.steps_offset)
        else:  # one more, the lowest of which is where the sampler does not go
            times = timesteps(self.spacing, steps + 1, n, steps_offset=self.steps_offset)[:-1]
        alphas = self.alphas_cumprod()
        return times, np.append(alphas[times], 1.0 if self.final_sigma == "zero" else alphas[0])

    def _first_order_last(self, steps: int) -> bool:
        if self.grid == "continuous":
            return self.lower_order_final
        return self.final_sigma == "zero" or (self.lower_order_final and steps < 15)

    def init(self, x: Float[Array, "b *shape"]) -> Float[Array, "b *shape"]:
        """The data predicted in the step before; there is none yet, and the first step ignores it."""
        return jnp.zeros_like(x)

    def step(
        self,
        x: Float[Array, "b *shape"],
        out: Float[Array, "b *out"],
        row: Mapping[str, Array],
        memory: Float[Array, "b *shape"],
        keys: Key[Array, " b"],
    ) -> tuple[Float[Array, "b *shape"], Float[Array, "b *shape"]]:
        """One step; draws no noise, and the variance of the model, if any, is dropped."""
        prediction, _ = split_variance(x, out)
        x0 = row["x0_on_x"] * x + row["x0_on_out"] * prediction
        estimate = x0 + row["slope"] * (x0 - memory)
        return row["on_x"] * x + row["on_data"] * estimate, x0


SAMPLER = DPMSolver
