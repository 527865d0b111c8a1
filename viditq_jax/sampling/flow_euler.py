"""Euler steps along the velocity of a (rectified) flow: STDiT3, SD3, FLUX. First order."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, Key

from viditq_jax.sampling.sample import split_variance
from viditq_jax.sampling.schedule import FLOW_SPACINGS, check_choice, flow_sigmas

VELOCITIES = ("noise_minus_data", "data_minus_noise")


@dataclasses.dataclass(frozen=True)
class FlowEuler:
    """x' = x + (sigma' - sigma) v, with x = (1 - sigma) x0 + sigma noise.

    shift: see `schedule.shift_sigmas`. Where it depends on the size (FLUX, STDiT3), replace it by
    `schedule.dynamic_shift(tokens)` or `schedule.video_shift(height, width, frames)`.
    spacing: the levels before the shift, see `schedule.flow_sigmas`; "training" is the default list of SD3.
    velocity: what the model predicts; STDiT3 gives data minus noise, the others noise minus data.
    time_scale: the model's time is time_scale * sigma; 1 for FLUX.
    num_train_timesteps: places the lowest level of the spacing "training".
    """

    shift: float = 1.0
    spacing: str = "uniform"
    velocity: str = "noise_minus_data"
    time_scale: float = 1000.0
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        check_choice("spacing", self.spacing, FLOW_SPACINGS)
        check_choice("velocity", self.velocity, VELOCITIES)
        if self.shift <= 0:
            raise ValueError(f"shift is {self.shift}; it must be above 0.")

    def table(self, steps: int) -> dict[str, np.ndarray]:
        """x' = x + on_out out."""
        sigmas = flow_sigmas(self.spacing, steps, self.shift, self.num_train_timesteps)
        sign = 1 if self.velocity == "noise_minus_data" else -1
        columns = {"t": self.time_scale * sigmas[:-1], "on_out": sign * np.diff(sigmas)}
        return {name: column.astype(np.float32) for name, column in columns.items()}

    def init(self, x: Float[Array, "b *shape"]) -> tuple[()]:
        """No memory."""
        return ()

    def step(
        self,
        x: Float[Array, "b *shape"],
        out: Float[Array, "b *out"],
        row: Mapping[str, Array],
        memory: tuple[()],
        keys: Key[Array, " b"],
    ) -> tuple[Float[Array, "b *shape"], tuple[()]]:
        """One step; draws no noise, and the variance of the model, if any, is dropped."""
        prediction, _ = split_variance(x, out)
        return x + row["on_out"] * prediction, memory


SAMPLER = FlowEuler
