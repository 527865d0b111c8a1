"""The training of the packaged model: its targets, its captions, and that an interruption costs nothing."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
pytest.importorskip("optax", reason="needs the extra train")

from default_model import data, denoiser, loop

from viditq_jax.sampling.schedule import to_data


def test_the_sampler_reads_the_data_back_from_the_velocity_that_is_trained():
    clean, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 4))
    signal = np.array([0.9, 0.5, 0.01])
    x, velocity = denoiser.noised(clean, noise, jnp.asarray(signal, jnp.float32))
    on_x, on_out = (part[:, None, None, None] for part in to_data("v_prediction", signal))
    # Two products and a sum of values below 5, each rounded to half a unit in the last place.
    np.testing.assert_allclose(on_x * x + on_out * velocity, clean, atol=4 * 5 * 2**-24)


def test_training_times_spread_the_noise_as_the_cosine_schedule_does():
    signal = denoiser.SAMPLER.alphas_cumprod()[denoiser.training_times()]
    share = (np.arange(len(signal)) + 0.5) / len(signal)
    inside = (signal > signal.min()) & (signal < signal.max())  # the linear schedule has both ends cut off
    # Rounding to a whole timestep moves the signal by at most half of the greatest step between neighbours.
    half_step = np.abs(np.diff(denoiser.SAMPLER.alphas_cumprod())).max() / 2
    np.testing.assert_allclose(signal[inside], np.cos(np.pi * share[inside] / 2) ** 2, atol=half_step)


def test_a_caption_names_the_colour_and_the_style_but_not_white():
    icon = data.Icon("red-apple", "noto", "Food & Drink", "", 128, False, 1.0)
    assert data.caption(icon, "white", style=False) == "red apple"
    assert data.caption(icon, "orange", style=True) == "red apple on an orange background, noto style"


def test_held_out_icons_are_never_drawn_and_their_other_style_is():
    icons = [
        data.Icon(f"thing-{i // 2}", ("noto", "fluent")[i % 2], "Objects", "", 128, False, 1.0)
        for i in range(100)
    ]
    rows = data.make_rows(icons, held_out=0.1)
    hidden = set(rows.icon[rows.held_out])
    assert len(hidden) == 10
    assert not rows.weight[rows.held_out].any()
    assert all(i ^ 1 not in hidden for i in hidden)
    assert rows.weight.sum() == pytest.approx(1.0)


def test_training_goes_on_where_it_was_stopped_and_a_finished_run_is_only_read(tmp_path):
    plan = loop.Plan("toy", minutes=1 / 60, batch=1, rate=0.05, decay=0.0, save_every=0.2)

    def run(watch=None):
        def distance(params, target, key):
            return jnp.square(params["x"] - target).mean(), {}

        start, target = {"x": jnp.zeros((4, 4))}, jnp.full((4, 4), 0.5)
        return loop.train(plan, start, distance, target, tmp_path, watch=watch, watch_every=0.4)

    def stop(average, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    kept = max(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    average = run()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps[-1] > kept
    np.testing.assert_allclose(
        average["x"], 0.5, atol=0.05
    )  # the rate ends at zero, so nothing is left to swing
    np.testing.assert_array_equal(run()["x"], average["x"])
