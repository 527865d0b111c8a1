"""On Gaussian data the ideal model is a formula and its flow is known exactly, so order can be measured."""

from math import log2, sqrt

import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax import plugins
from viditq_jax.sampling.sample import sample, sample_keys

DATA_STD = 0.5
TRAINING = 100_000  # so many that whole timesteps do not disturb the measurement


def vp_signal(t):
    """Share of the signal at time t of TRAINING, for betas that rise as those of 1000 timesteps."""
    s = (t + 1) / TRAINING
    return jnp.exp(-(0.1 * s + 0.5 * 19.9 * s**2))


def ideal_noise(x, t, i):
    a = vp_signal(t)[:, None]
    return jnp.sqrt(1 - a) * x / (a * DATA_STD**2 + 1 - a)


def ideal_velocity(x, t, i):
    """E[noise - x0 | x] for x = (1 - t) x0 + t noise."""
    t = t[:, None]
    return x * (t - (1 - t) * DATA_STD**2) / ((1 - t) ** 2 * DATA_STD**2 + t**2)


def vp_std(a):
    return sqrt(a * DATA_STD**2 + 1 - a)


def error(name: str, steps: int) -> float:
    """How far a start at 1 ends from where the exact flow takes it: std at the end / std at the start."""
    kind = plugins.find("viditq_jax.sampling", name, "SAMPLER")
    if name == "flow_euler":
        sampler, model, wanted = kind(time_scale=1.0), ideal_velocity, DATA_STD
    else:
        sampler = kind(num_train_timesteps=TRAINING, beta_start=0.1 / TRAINING, beta_end=20 / TRAINING)
        signal = sampler.alphas_cumprod()
        end = float(signal[0]) if name == "dpm_solver" else 1.0
        model, wanted = ideal_noise, vp_std(end) / vp_std(float(signal[-1]))
    made = sample(model, sampler, jnp.ones((1, 1)), sample_keys(0, 0, 1), steps=steps)
    return abs(float(made[0, 0]) - wanted)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("flow_euler", 1), ("dpm_solver", 2)])
def test_error_falls_with_the_order_of_the_sampler(name, order):
    measured = log2(error(name, 20) / error(name, 80)) / 2  # two doublings of the number of steps
    assert measured > order - 0.2


def test_ancestral_samples_have_the_spread_of_the_data():
    """4096 samples: the standard error of a standard deviation is 1 / sqrt(2 * 4096) = 1.1% of it."""
    sampler = plugins.find("viditq_jax.sampling", "iddpm", "SAMPLER")(variance="fixed_small")
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((4096, 1)), jnp.float32)

    def model(x, t, i):
        return ideal_noise(x, (t + 1) * TRAINING / 1000 - 1, i)

    made = sample(model, sampler, noise, sample_keys(0, 0, 4096), steps=250)
    # Ancestral steps are of first order: 250 of them add an error of about 1 in 250.
    assert float(made.std()) == pytest.approx(DATA_STD, rel=3 * 0.011 + 1 / 250)
