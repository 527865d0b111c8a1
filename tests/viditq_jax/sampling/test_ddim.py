import numpy as np
import pytest
import torch

from viditq_jax.sampling.ddim import DDIM

# 50 steps of about 4 float32 roundings of at most 6e-8 each, none of which the update enlarges.
TOLERANCE = 1e-5


def reference(toy, noise, step_noise, times, eta):
    """DDIM in float64, as the original loops: times fall, a of the step after the last is 1."""
    a_all = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x = noise.astype(np.float64)
    for i, t in enumerate(times):
        a, a_next = a_all[t], a_all[times[i + 1]] if i + 1 < len(times) else 1.0
        epsilon = toy.numpy(x, t)
        x0 = x / np.sqrt(a) - np.sqrt(1 / a - 1) * epsilon
        s = eta * np.sqrt((1 - a_next) / (1 - a)) * np.sqrt(1 - a / a_next)
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next - s**2) * epsilon + s * step_noise(i)
    return x


def accumulated(steps):
    times, position = [], 0.0
    for _ in range(steps):
        times.append(round(position))
        position += 999 / (steps - 1)
    return times[::-1]


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("spacing", "times"),
    [("K", accumulated(20)), ("ddimK", list(range(980, -1, -20)))],
)
def test_a_trajectory_is_the_one_of_the_original_loop(
    toy, noise, step_noise, run, distance, spacing, times, eta
):
    found = run(toy, DDIM(eta=eta, spacing=spacing), len(times))
    assert distance(found, reference(toy, noise, step_noise, times, eta)) < TOLERANCE


def diffusers_samples(toy, noise, step_noise, steps, eta, **options):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, **options)
    scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise)
    for i, t in enumerate(scheduler.timesteps):
        drawn = torch.from_numpy(step_noise(i)) if eta else None
        x = scheduler.step(toy.torch(x, t), t, x, eta=eta, variance_noise=drawn).prev_sample
    return x.double().numpy()


@pytest.mark.parametrize(("prediction", "eta"), [("epsilon", 0.0), ("v_prediction", 0.6)])
@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (14, {}),  # does not divide 1000
        (20, {"set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear"}),
        (25, {"timestep_spacing": "trailing"}),
        (10, {"num_train_timesteps": 100, "beta_end": 0.1}),
    ],
)
def test_a_trajectory_is_the_one_of_diffusers(
    toy, noise, step_noise, run, distance, steps, options, prediction, eta
):
    ours = {"spacing": options.get("timestep_spacing", "leading")}
    ours |= {name: value for name, value in options.items() if name != "timestep_spacing"}
    found = run(toy, DDIM(eta=eta, prediction=prediction, **ours), steps)
    wanted = diffusers_samples(toy, noise, step_noise, steps, eta, prediction_type=prediction, **options)
    assert distance(found, wanted) < TOLERANCE


def test_the_variance_half_of_the_model_is_dropped(toy_with_variance, run):
    first_half = type(toy_with_variance)(out_channels=8)
    c = 4
    first_half.a, first_half.w = first_half.a[:, :c], first_half.w[:, :c]
    first_half.u, first_half.b = first_half.u[:c], first_half.b[:c]
    # Not bit for bit: a product with twice the columns may add in another order.
    np.testing.assert_allclose(
        run(toy_with_variance, DDIM(), 5), run(first_half, DDIM(), 5), rtol=1e-5, atol=1e-6
    )


def test_predicting_noise_or_velocity_is_the_same_when_the_network_converts(start, keys):
    """v = sqrt(a) noise - sqrt(1 - a) x0, so a v network made of a noise network gives the same samples."""
    import jax.numpy as jnp

    from viditq_jax.sampling.sample import sample

    a_all = jnp.asarray(DDIM().alphas_cumprod(), jnp.float32)

    def epsilon(x, t, i):
        return 0.9 * x

    def velocity(x, t, i):
        a = a_all[t.astype(int)][:, None, None, None]
        return (epsilon(x, t, i) - jnp.sqrt(1 - a) * x) / jnp.sqrt(a)

    one = sample(epsilon, DDIM(), start, keys, steps=10)
    two = sample(velocity, DDIM(prediction="v_prediction"), start, keys, steps=10)
    # At the first step 1 / sqrt(a) is 157, which enlarges float32 roundings of 6e-8 to 1e-5.
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
