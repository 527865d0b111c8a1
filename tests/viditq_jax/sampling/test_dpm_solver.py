import numpy as np
import pytest
import torch

from viditq_jax.sampling.dpm_solver import DPMSolver

# 50 steps of about 4 float32 roundings of at most 6e-8 each. Data predicted at low signal has roundings 157
# times larger, but enters the state with a weight that undoes this.
TOLERANCE = 1e-5


def reference(toy, noise, steps, lower_order_final=True):
    """The original sampler in float64: continuous time, ln(alpha) interpolated linearly."""
    log_alphas = np.cumsum(np.log(1 - np.linspace(1e-4, 0.02, 1000))) / 2
    s = np.linspace(1, 1e-3, steps + 1)
    log_alpha = np.interp(s, np.arange(1, 1001) / 1000, log_alphas)
    alpha = np.exp(log_alpha)
    sigma = np.sqrt(1 - alpha**2)
    h = np.diff(np.log(alpha / sigma))
    x, before = noise.astype(np.float64), None
    for i in range(steps):
        x0 = (x - sigma[i] * toy.numpy(x, (s[i] - 1e-3) * 1000)) / alpha[i]
        d = x0
        if i > 0 and not (lower_order_final and i == steps - 1):
            r = h[i - 1] / h[i]
            d = x0 + (x0 - before) / (2 * r)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h[i]) - 1) * d
        before = x0
    return x


@pytest.mark.parametrize("lower_order_final", [True, False])
@pytest.mark.parametrize("steps", [1, 14, 20, 50])
def test_a_continuous_trajectory_is_the_one_of_the_original(
    toy, noise, run, distance, steps, lower_order_final
):
    found = run(toy, DPMSolver(lower_order_final=lower_order_final), steps)
    assert distance(found, reference(toy, noise, steps, lower_order_final)) < TOLERANCE


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 14, 20, 50])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False, "beta_schedule": "scaled_linear"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
    ],
    ids=str,
)
def test_an_integer_trajectory_is_the_one_of_diffusers(toy, noise, run, distance, steps, options, prediction):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(prediction_type=prediction, **options)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        x = scheduler.step(toy.torch(x, t), t, x).prev_sample
    names = {"timestep_spacing": "spacing", "final_sigmas_type": "final_sigma"}
    ours = {names.get(name, name): value for name, value in options.items()}
    sampler = DPMSolver(grid="integer", prediction=prediction, **ours)
    assert sampler.table(steps)["t"].tolist() == scheduler.timesteps.tolist()
    assert distance(run(toy, sampler, steps), x.double().numpy()) < TOLERANCE


def test_the_two_grids_are_not_the_same_sampler(toy, run, distance):
    assert distance(run(toy, DPMSolver(grid="integer"), 20), run(toy, DPMSolver(), 20)) > 100 * TOLERANCE


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_integer_times_are_those_of_diffusers_for_every_count(spacing):
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(timestep_spacing=spacing)
    for steps in range(1, 110):
        scheduler.set_timesteps(steps)
        ours = DPMSolver(grid="integer", spacing=spacing).table(steps)["t"]
        assert ours.tolist() == scheduler.timesteps.tolist()[:steps], steps


def test_the_last_step_to_zero_noise_returns_the_predicted_data():
    row = DPMSolver(grid="integer").table(20)
    assert row["on_x"][-1] == 0
    assert row["on_data"][-1] == 1
    assert row["slope"][0] == row["slope"][-1] == 0
    assert (row["slope"][1:-1] > 0).all()
