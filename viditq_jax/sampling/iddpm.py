"""IDDPM: ancestral sampling on a respaced schedule, with the learned variance of DiT, STDiT and Latte."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from viditq_jax.sampling.sample import normal, split_variance
from viditq_jax.sampling.schedule import PREDICTIONS, SPACINGS, VPSchedule, check_choice, timesteps, to_data

VARIANCES = ("learned_range", "fixed_small", "fixed_large")


@dataclasses.dataclass(frozen=True)
class IDDPM(VPSchedule):
    """x' = mean of the posterior q(x' | x, x0) + spread * n; no noise in the last step, x0 is not clipped.

    variance: "learned_range" mixes the logarithms of the posterior variance (v = -1) and of beta (v = 1) by
    the second half v of the model's channels, unclamped; "fixed_small" is the posterior variance,
    "fixed_large" is beta.
    Source: arXiv 2102.09672, section 3.1; respaced as in the DiT release: beta = 1 - a / a' between visited
    timesteps.
    """

    variance: str = "learned_range"
    spacing: str = "K"
    steps_offset: int = 0
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("variance", self.variance, VARIANCES)
        check_choice("spacing", self.spacing, SPACINGS)
        check_choice("prediction", self.prediction, PREDICTIONS)

    def table(self, steps: int) -> dict[str, np.ndarray]:
        """Mean = on_x x + on_out out; "low" and "high" bound the log variance; "noise" is 0 in the last step,
        else 1.
        """
        times = timesteps(self.spacing, steps, self.num_train_timesteps, steps_offset=self.steps_offset)
        a = self.alphas_cumprod()[times]
        a_next = np.append(a[1:], 1.0)
        beta = 1 - a / a_next
        data, state = beta * np.sqrt(a_next) / (1 - a), (1 - a_next) * np.sqrt(1 - beta) / (1 - a)
        posterior = beta * (1 - a_next) / (1 - a)
        # Zero in the last step, which draws no noise; replaced, because its logarithm is taken.
        posterior[-1] = posterior[-2] if steps > 1 else beta[-1]
        x0_x, x0_out = to_data(self.prediction, a)
        columns = {
            "t": times,
            "on_x": data * x0_x + state,
            "on_out": data * x0_out,
            "low": np.log(beta if self.variance == "fixed_large" else posterior),
            "high": np.log(posterior if self.variance == "fixed_small" else beta),
            "noise": np.append(np.ones(steps - 1), 0.0),
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
        """One step. Raises ValueError if a learned variance is asked for and the model gives none."""
        prediction, v = split_variance(x, out)
        log_variance = row["low"]
        if self.variance == "learned_range":
            if v is None:
                raise ValueError(
                    f"variance 'learned_range' needs {2 * x.shape[-1]} channels from the model, which gave "
                    f"{out.shape[-1]}; take 'fixed_small' or 'fixed_large'."
                )
            log_variance = row["low"] + (v + 1) / 2 * (row["high"] - row["low"])
        mean = row["on_x"] * x + row["on_out"] * prediction
        return mean + row["noise"] * jnp.exp(log_variance / 2) * normal(keys, x.shape[1:]), memory


SAMPLER = IDDPM
