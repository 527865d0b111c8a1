"""Statistics from trajectories: those of every step of the float model, and of nothing else."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.calibrate import calibrate
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import guided_model
from viditq_jax.quant.observe import observe
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule, load_recipe
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import Stats, merge_stats
from viditq_jax.sampling.sample import draw_noise, rows, sample_keys

PROMPTS = ["a red apple", "two blue dogs", "gold"]
STATIC = load_recipe("w8a8-static")


def by_hand(pipeline: Pipeline, prompts: list[str], seed: int) -> Stats:
    """The sampling loop written out in Python, with taps in each step."""
    conditions, scale = pipeline.encode(prompts, guide=True), pipeline.guidance.scale
    keys = sample_keys(seed, 0, len(prompts))

    def denoise_once(x: jax.Array, t: jax.Array, i: jax.Array, net: Net) -> jax.Array:
        return guided_model(net, conditions, scale, pipeline.guidance)(x, t, i)

    x = draw_noise(keys, pipeline.latent_shape())
    sampler, stats = pipeline.sampler, {}
    memory, table = sampler.init(x), jax.tree.map(jnp.asarray, rows(sampler, pipeline.steps))
    for i in range(pipeline.steps):
        row = {name: column[i] for name, column in table.items()}
        step = partial(denoise_once, x, jnp.full(len(prompts), row["t"]), row["i"])
        out, seen = observe(pipeline.denoiser, step)
        stats = merge_stats(stats, seen)
        x, memory = sampler.step(x, out, row, memory, keys)
    return stats


def assert_close(a: Stats, b: Stats) -> None:
    """Compiled and eager sums add in other orders: a few float32 roundings, carried through three steps."""
    assert a.keys() == b.keys()
    for path in a:
        for found, wanted in ((a[path].low, b[path].low), (a[path].high, b[path].high)):
            size = float(np.abs(b[path].absmax).max())
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * size, err_msg=path)


def test_statistics_are_those_of_all_steps_of_the_trajectory() -> None:
    pipeline = tiny.pipeline()
    stats, wanted = calibrate(pipeline, PROMPTS, STATIC, seed=3), by_hand(pipeline, PROMPTS, 3)
    assert set(stats) == set(pipeline.denoiser.weights())
    assert_close(stats, wanted)
    for path, layer in stats.items():
        assert int(layer.count) == int(wanted[path].count), path


def test_batches_merge_to_the_statistics_of_all() -> None:
    """The last batch once won (D4); a last batch that is smaller counts like the others."""
    finished: list[int] = []
    pipeline = tiny.pipeline()
    assert_close(
        calibrate(pipeline, PROMPTS, STATIC, seed=3, batch=2, advance=finished.append),
        calibrate(pipeline, PROMPTS, STATIC, seed=3),
    )
    assert finished == [2, 1]


def test_the_last_step_alone_would_give_other_statistics() -> None:
    """So the tests above can tell whether all steps count."""
    pipeline = tiny.pipeline()
    three, one = (calibrate(pipeline, PROMPTS[:1], STATIC, seed=3, steps=steps) for steps in (3, 1))
    assert np.any(np.asarray(three["blocks/0/mlp/fc1"].high) > np.asarray(one["blocks/0/mlp/fc1"].high))
    assert int(three["blocks/0/mlp/fc1"].count) == 3 * int(one["blocks/0/mlp/fc1"].count)


def test_a_quantized_pipeline_and_a_recipe_that_does_not_fit_are_refused() -> None:
    pipeline = tiny.pipeline()
    with pytest.raises(ValueError, match="statistics are of the float model"):
        calibrate(pipeline.quantized(load_recipe("w8a8")), PROMPTS, STATIC)
    with pytest.raises(RecipeError, match="nowhere matches none"):
        calibrate(pipeline, PROMPTS, Recipe((Rule(("nowhere",), Spec.parse("int8/channel")),)))


def test_a_model_that_gives_nan_is_refused_and_the_layer_named() -> None:
    """A static scale made of NaN would make every output NaN."""
    pipeline = tiny.pipeline()
    broken = pipeline.denoiser.map_weights(
        lambda path, weight: weight.at[0, 0].set(jnp.nan) if path == "blocks/1/mlp/fc1" else weight
    )
    with pytest.raises(ValueError, match=r"^2 layers .*: blocks/1/mlp/fc2, final_layer"):
        calibrate(dataclasses.replace(pipeline, denoiser=broken), PROMPTS[:1], STATIC, steps=1)
