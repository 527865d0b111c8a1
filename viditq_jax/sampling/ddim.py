"""DDIM: deterministic (eta = 0) or with as much noise as the ancestral sampler (eta = 1). First order."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float, Key

from viditq_jax.sampling.sample import normal, split_variance
from viditq_jax.sampling.schedule import (
    PREDICTIONS,
    SPACINGS,
    VPSchedule,
    check_choice,
    timesteps,
    to_data,
    to_noise,
)


@dataclasses.dataclass(frozen=True)
class DDIM(VPSchedule):
    """x' = sqrt(a') x0 + sqrt(1 - a' - s^2) noise + s n, with a' the signal share at the next timestep.

    s = eta sqrt((1 - a') / (1 - a)) sqrt(1 - a / a'). Source: arXiv 2010.02502, equations 12 and 16.
    set_alpha_to_one: whether the last step ends at a' = 1, or at the first training timestep.
    Equal to the original loops with the spacings "K" and "ddimK", and to diffusers with "leading" and, where
    the steps divide the training timesteps, "trailing". Elsewhere diffusers steps to t - n // K, which is not
    the next timestep that it visits; we step to the one that is visited.
    """

    eta: float = 0.0
    spacing: str = "K"
    steps_offset: int = 0
    prediction: str = "epsilon"
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("spacing", self.spacing, SPACINGS)
        check_choice("prediction", self.prediction, PREDICTIONS)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be in [0, 1].")

    def table(self, steps: int) -> dict[str, np.ndarray]:
        """x' = on_x x + on_out out + on_noise n: one sum, so that float32 never forms x0 where it is huge."""
        times = timesteps(self.spacing, steps, self.num_train_timesteps, steps_offset=self.steps_offset)
        alphas = self.alphas_cumprod()
        a = alphas[times]
        a_next = np.append(a[1:], 1.0 if self.set_alpha_to_one else alphas[0])
        spread = self.eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
        x0_x, x0_out = to_data(self.prediction, a)
        noise_x, noise_out = to_noise(self.prediction, a)
        direction = np.sqrt(1 - a_next - spread**2)
        columns = {
            "t": times,
            "on_x": np.sqrt(a_next) * x0_x + direction * noise_x,
            "on_out": np.sqrt(a_next) * x0_out + direction * noise_out,
            "on_noise": spread,
        }
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
        """One step; the variance of the model, if any, is dropped."""
        prediction, _ = split_variance(x, out)
        new = row["on_x"] * x + row["on_out"] * prediction
        if self.eta:
            new = new + row["on_noise"] * normal(keys, x.shape[1:])
        return new, memory


SAMPLER = DDIM
