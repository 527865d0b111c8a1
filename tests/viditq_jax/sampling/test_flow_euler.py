import numpy as np
import pytest
import torch

from viditq_jax.sampling.flow_euler import FlowEuler
from viditq_jax.sampling.sample import sample
from viditq_jax.sampling.schedule import dynamic_shift, video_shift

# 50 steps of about 4 float32 roundings of at most 6e-8 each, none of which the update enlarges.
TOLERANCE = 1e-5


def diffusers_samples(toy, noise, scheduler):
    x = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        x = scheduler.step(toy.torch(x, t), t, x).prev_sample
    return x.double().numpy()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 14, 28, 50])
def test_default_levels_give_the_trajectory_of_diffusers(toy, noise, run, distance, shift, steps):
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sampler = FlowEuler(shift=shift, spacing="training")
    # Theirs are rounded twice to float32, to within 6e-5 at 1000.
    np.testing.assert_allclose(sampler.table(steps)["t"], scheduler.timesteps, rtol=2e-7)
    assert distance(run(toy, sampler, steps), diffusers_samples(toy, noise, scheduler)) < TOLERANCE


def test_a_dynamic_shift_gives_the_trajectory_of_diffusers(toy, noise, run, distance):
    from diffusers import FlowMatchEulerDiscreteScheduler

    steps, tokens = 20, 1024
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(
        sigmas=list(np.linspace(1, 1 / steps, steps)), mu=float(np.log(dynamic_shift(tokens)))
    )
    found = run(toy, FlowEuler(shift=dynamic_shift(tokens)), steps)
    assert distance(found, diffusers_samples(toy, noise, scheduler)) < TOLERANCE


def test_a_uniform_shifted_list_gives_the_trajectory_of_diffusers(toy, noise, run, distance):
    """The list of HunyuanVideo: 50 of 51 even levels, shift 7."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    scheduler.set_timesteps(sigmas=list(np.linspace(1, 0, 51)[:-1]))
    assert distance(run(toy, FlowEuler(shift=7.0), 50), diffusers_samples(toy, noise, scheduler)) < TOLERANCE


def test_rectified_flow_of_stdit3_predicts_data_minus_noise(toy, noise, run, distance):
    steps, r = 30, video_shift(240, 426, frames=51)
    tau = 1 - np.arange(steps) / steps
    tau = r * tau / (1 + (r - 1) * tau)
    x = noise.astype(np.float64)
    for i in range(steps):
        dt = tau[i] - (tau[i + 1] if i + 1 < steps else 0)
        x = x + toy.numpy(x, 1000 * tau[i]) * dt
    assert distance(run(toy, FlowEuler(shift=r, velocity="data_minus_noise"), steps), x) < TOLERANCE


def test_the_time_of_the_model_is_the_level_times_its_scale():
    thousand, one = FlowEuler(shift=3.0).table(7), FlowEuler(shift=3.0, time_scale=1.0).table(7)
    np.testing.assert_allclose(thousand["t"], 1000 * one["t"], rtol=2e-7)
    np.testing.assert_array_equal(thousand["on_out"], one["on_out"])


@pytest.mark.parametrize("steps", [1, 3])
def test_a_straight_flow_arrives_exactly_in_any_number_of_steps(start, keys, steps):
    """Data at 0: the velocity noise - x0 is x / sigma, and every step scales the noise down."""
    made = sample(
        lambda x, t, i: x / t[:, None, None, None], FlowEuler(time_scale=1.0), start, keys, steps=steps
    )
    np.testing.assert_allclose(made, 0, atol=1e-6)
