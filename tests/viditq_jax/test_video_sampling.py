"""Whole trajectories of video models, against the equations of the originals in NumPy, float64."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import encode_prompt

PROMPTS = ["a red apple", "two blue dogs"]
CONDITIONS = {"stdit": PROMPTS, "stdit3": PROMPTS, "latte_t2v": PROMPTS, "latte": [0, 3]}
STEPS, SEED = 5, 3
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
TOLERANCE = 1e-5  # both take float32 outputs of the model; only its input is rounded elsewhere

forward = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})(Net.__call__)


def model_of(
    video: Pipeline, channels: int | None, scale: float
) -> Callable[[np.ndarray, float], np.ndarray]:
    """The guided output at a state, from one pass over [cond, uncond] as the original builds it."""
    kind = video.facts["denoiser"]["model"]
    conditions = CONDITIONS[kind]
    ordered = dataclasses.replace(
        video, facts={**video.facts, "guidance": {**video.facts["guidance"], "order": "cond_first"}}
    )
    encoded = ordered.encode(conditions, guide=True)
    rest = [encoded["y"]]
    if "mask" in encoded:
        rest = [encode_prompt(video.denoiser, encoded), *([encoded["clip"]] if "clip" in encoded else [])]

    def guided(x: np.ndarray, t: float) -> np.ndarray:
        both = jnp.asarray(np.concatenate([x, x]), jnp.float32)
        out = np.asarray(forward(video.denoiser, both, jnp.full(4, t, jnp.float32), *rest), np.float64)
        cond, uncond = np.split(out, 2)
        mixed = cond.copy()
        n = 4 if channels is None else channels
        mixed[..., :n] = uncond[..., :n] + scale * (cond[..., :n] - uncond[..., :n])
        return mixed

    return guided


def draw(shape: tuple[int, ...], i: int) -> np.ndarray:
    """The noise of sample j at loop step i - 1; its initial noise for i = 0."""
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), j), i) for j in range(2)]
    return np.stack([np.asarray(jax.random.normal(key, shape), np.float64) for key in keys])


def visited(steps: int) -> np.ndarray:
    """The respaced timesteps of the originals, falling."""
    stride, times, at = 999 / (steps - 1), [], 0.0
    for _ in range(steps):
        times.append(round(at))
        at += stride
    return np.array(times[::-1])


def iddpm(model, x: np.ndarray) -> np.ndarray:
    times = visited(STEPS)
    a = ALPHAS[times]
    after = np.append(a[1:], 1.0)
    beta = 1 - a / after
    posterior = beta * (1 - after) / (1 - a)
    for i in range(STEPS):
        out = model(x, float(times[i]))
        noise, v = out[..., :4], out[..., 4:]
        x0 = x / np.sqrt(a[i]) - np.sqrt(1 / a[i] - 1) * noise
        mean = beta[i] * np.sqrt(after[i]) / (1 - a[i]) * x0
        mean = mean + (1 - after[i]) * np.sqrt(1 - beta[i]) / (1 - a[i]) * x
        low, high = np.log(posterior[i] if i < STEPS - 1 else posterior[-2]), np.log(beta[i])
        spread = np.exp(((v + 1) / 2 * high + (1 - (v + 1) / 2) * low) / 2)
        x = mean + (i < STEPS - 1) * spread * draw(x.shape[1:], i + 1)
    return x


def ddim(model, x: np.ndarray, *, leading: bool = False) -> np.ndarray:
    times = np.arange(STEPS)[::-1] * (1000 // STEPS) if leading else visited(STEPS)
    a = ALPHAS[times]
    after = np.append(a[1:], 1.0)
    for i in range(STEPS):
        noise = model(x, float(times[i]))[..., :4]
        x0 = (x - np.sqrt(1 - a[i]) * noise) / np.sqrt(a[i])
        x = np.sqrt(after[i]) * x0 + np.sqrt(1 - after[i]) * noise
    return x


def dpm_solver(model, x: np.ndarray) -> np.ndarray:
    """Multistep, second order, on continuous times that end at 1 / 1000."""
    s = np.linspace(1, 1e-3, STEPS + 1)
    log_alpha = np.interp(
        s, np.arange(1, 1001) / 1000, np.cumsum(np.log(1 - np.linspace(1e-4, 0.02, 1000))) / 2
    )
    alpha = np.exp(log_alpha)
    sigma = np.sqrt(1 - alpha**2)
    level = np.log(alpha / sigma)
    before = None
    for i in range(STEPS):
        noise = model(x, (s[i] - 1e-3) * 1000)[..., :4]
        x0 = (x - sigma[i] * noise) / alpha[i]
        d, h = x0, level[i + 1] - level[i]
        if before is not None and i < STEPS - 1:
            r = (level[i] - level[i - 1]) / h
            d = x0 + (x0 - before) / (2 * r)
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (np.exp(-h) - 1) * d
        before = x0
    return x


def rectified_flow(model, x: np.ndarray) -> np.ndarray:
    """Of 5 frames of latents, 16 by 16 pixels: one whole five of frames counts."""
    shift = np.sqrt(16 * 16 / 512**2) * np.sqrt(5)
    tau = 1 - np.arange(STEPS) / STEPS
    tau = np.append(shift * tau / (1 + (shift - 1) * tau), 0)
    for i in range(STEPS):
        x = x + model(x, 1000 * tau[i])[..., :4] * (tau[i] - tau[i + 1])
    return x


CASES = {
    "stdit, iddpm": (iddpm, 3, 7.0),
    "stdit, ddim": (ddim, 3, 4.0),
    "stdit, dpm_solver": (dpm_solver, None, 7.0),
    "stdit3, flow_euler": (rectified_flow, None, 7.0),
    "latte, iddpm": (iddpm, None, 7.0),
    "latte, ddim": (ddim, None, 7.0),
    "latte_t2v, ddim": (functools.partial(ddim, leading=True), None, 7.5),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trajectory_is_that_of_the_original(case: str) -> None:
    """With the channels that the original guides, and its scale; all are facts of the converter."""
    kind, name = case.split(", ")
    loop, channels, scale = CASES[case]
    video = tiny.video(kind).with_sampler(name)
    assert (video.guidance.channels, video.guidance.scale) == (channels, scale)
    found = np.asarray(video.latents(CONDITIONS[kind], seed=SEED, steps=STEPS), np.float64)
    wanted = loop(model_of(video, channels, scale), draw(found.shape[1:], 0))
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("model", "name", "steps"),
    [("stdit", "iddpm", 100), ("stdit", "dpm_solver", 20), ("latte", "ddim", 20)],
)
def test_a_sampler_comes_with_the_steps_of_the_authors(model: str, name: str, steps: int) -> None:
    assert tiny.video(model).with_sampler(name).steps == steps


def test_samplers_can_be_changed_and_changed_back() -> None:
    video = tiny.video("stdit")
    back = video.with_sampler("dpm_solver").with_sampler("iddpm")
    assert (back.sampler, back.guidance) == (video.sampler, video.guidance)
    assert video.with_sampler("ddim", eta=0.5).sampler.eta == 0.5
