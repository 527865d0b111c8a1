import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from viditq_jax.sampling.iddpm import IDDPM
from viditq_jax.sampling.sample import sample, sample_keys

# 50 steps of about 4 float32 roundings of at most 6e-8 each, none of which the update enlarges.
TOLERANCE = 1e-5


def reference(toy, noise, step_noise, times, variance):
    """Respaced ancestral sampling in float64; times rise, steps run from the last to the first."""
    a = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times]
    a_before = np.append(1.0, a[:-1])
    beta = 1 - a / a_before
    posterior = beta * (1 - a_before) / (1 - a)
    low = np.log(np.append(posterior[1], posterior[1:]))
    x = noise.astype(np.float64)
    for step, i in enumerate(reversed(range(len(times)))):
        out = toy.numpy(x, times[i])
        epsilon, v = out[..., :4], out[..., 4:]
        x0 = x / np.sqrt(a[i]) - np.sqrt(1 / a[i] - 1) * epsilon
        mean = beta[i] * np.sqrt(a_before[i]) / (1 - a[i]) * x0
        mean += (1 - a_before[i]) * np.sqrt(1 - beta[i]) / (1 - a[i]) * x
        mixed = (v + 1) / 2 * np.log(beta[i]) + (1 - (v + 1) / 2) * low[i]
        log_variance = {"learned_range": mixed, "fixed_small": low[i], "fixed_large": np.log(beta[i])}[
            variance
        ]
        x = mean + (i > 0) * np.exp(log_variance / 2) * step_noise(step)
    return x


@pytest.mark.parametrize("variance", ["learned_range", "fixed_large"])
@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        (
            "K",
            [0, 53, 105, 158, 210, 263, 315, 368, 421, 473, 526, 578, 631, 684, 736, 789, 841, 894, 946, 999],
        ),
        ("ddimK", list(range(0, 1000, 20))),
    ],
)
def test_a_trajectory_is_the_one_of_the_original_loop(
    toy_with_variance, noise, step_noise, run, distance, spacing, times, variance
):
    found = run(toy_with_variance, IDDPM(variance=variance, spacing=spacing), len(times))
    assert distance(found, reference(toy_with_variance, noise, step_noise, times, variance)) < TOLERANCE


@pytest.mark.parametrize(
    ("variance", "prediction"),
    [("learned_range", "epsilon"), ("fixed_small", "v_prediction"), ("fixed_large", "epsilon")],
)
def test_a_trajectory_is_the_one_of_diffusers(
    toy, toy_with_variance, noise, step_noise, run, distance, monkeypatch, variance, prediction
):
    """With leading timesteps and a number of steps that divides 1000 the two are the same sampler."""
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    network = toy_with_variance if variance == "learned_range" else toy
    scheduler = DDPMScheduler(variance_type=variance, clip_sample=False, prediction_type=prediction)
    scheduler.set_timesteps(20)
    x = torch.from_numpy(noise).movedim(-1, 1)  # it splits the variance off axis 1
    for i, t in enumerate(scheduler.timesteps):
        drawn = torch.from_numpy(step_noise(i)).movedim(-1, 1)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, drawn=drawn, **__: drawn)
        out = network.torch(x.movedim(1, -1), t).movedim(-1, 1)
        x = scheduler.step(out, t, x).prev_sample
    found = run(network, IDDPM(variance=variance, spacing="leading", prediction=prediction), 20)
    assert distance(found, x.movedim(1, -1).double().numpy()) < TOLERANCE


def test_the_last_step_draws_no_noise(toy_with_variance, noise, start, keys):
    """One step is the last step: other keys change nothing, and the result is x0."""
    make = jax.jit(lambda keys: sample(toy_with_variance.jax, IDDPM(), start, keys, steps=1))
    one = make(keys)
    np.testing.assert_array_equal(one, make(sample_keys(7, 0, 2)))
    a = 1 - 1e-4  # one step of spacing "K" is at timestep 0
    wanted = noise / np.sqrt(a) - np.sqrt(1 / a - 1) * toy_with_variance.numpy(noise, 0)[..., :4]
    np.testing.assert_allclose(one, wanted, rtol=1e-6, atol=1e-6)


def test_a_learned_variance_that_the_model_does_not_give_is_an_error(toy, start, keys):
    with pytest.raises(ValueError, match="needs 8 channels from the model, which gave 4; take 'fixed_small'"):
        sample(toy.jax, IDDPM(), start, keys, steps=3)


def test_the_variance_is_not_clamped(start, keys):
    """v = 3 extrapolates: log variance = 2 log(beta) - log(posterior)."""

    def constant(x, t, i):
        return jnp.concatenate([0 * x, jnp.full_like(x, 3.0)], axis=-1)

    row = IDDPM().table(2)
    made = sample(constant, IDDPM(), jnp.zeros_like(start), keys, steps=2)
    small = sample(lambda x, t, i: 0 * x, IDDPM(variance="fixed_small"), jnp.zeros_like(start), keys, steps=2)
    ratio = np.exp(float(row["high"][0] - row["low"][0]))
    np.testing.assert_allclose(made, small * ratio, rtol=1e-5)
