"""What is done to pipelines of pictures is done to those of videos: calibrated, tuned, measured, stressed."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.calibrate import calibrate
from viditq_jax.drift import layer_noise
from viditq_jax.load import load_pipeline
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import encode_prompt, guided_model
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.stats import Stats
from viditq_jax.speed import example_call, layer_speeds
from viditq_jax.stress import outliers, stress

PROMPTS = ["a red apple", "two blue dogs"]
RECIPE = load_recipe("w4a8")  # balances, rotations, Gram matrices


@functools.cache
def stats() -> Stats:
    return calibrate(tiny.video(), PROMPTS, RECIPE, seed=1)


@functools.cache
def small() -> Pipeline:
    return tiny.quantized(tiny.video(), RECIPE, stats())


def test_every_layer_of_a_block_is_calibrated_across_space_and_time() -> None:
    """9 linears hold the 13 of the paper, as queries, keys and values of self-attention are one."""
    seen = {path for path in stats() if path.startswith("blocks/")}
    assert len(seen) == 9
    tokens = 2 * 2 * 5 * 16 * 3  # samples, halves, frames, places, steps
    for path in seen - {"blocks/0/cross_attn/kv_linear"}:
        assert float(stats()[path].count[0]) == tokens
        assert stats()[path].gram is not None


def test_the_noise_of_every_layer_is_measured() -> None:
    noise = layer_noise(tiny.video(), small(), PROMPTS, stats())
    assert len(noise) == 9
    assert all(5 < each.sqnr_db < 60 for each in noise.values())


def test_a_quantized_video_pipeline_comes_back_bit_for_bit(tmp_path) -> None:
    small().save(tmp_path / "artifact")
    loaded = load_pipeline(tmp_path / "artifact")
    tiny.assert_same(loaded, small())
    assert loaded.frames == 5


@pytest.mark.parametrize("model", tiny.VIDEOS)
def test_speeds_are_told_of_the_tokens_of_all_frames(model: str) -> None:
    video = tiny.video(model)
    recipe = load_recipe("w8a8-dynamic")
    shapes = quantize(jax.eval_shape(lambda net: net, video.denoiser), recipe)
    small = dataclasses.replace(video, denoiser=shapes, recipe=recipe)
    rows = {each.layer: each.rows for each in layer_speeds(small)}
    sides = tiny.video(model).latent_shape()[1:3]
    spatial = next(path for path in rows if path.endswith("attn/qkv"))
    assert rows[spatial] == 2 * 5 * math.prod(sides) // 4


@pytest.mark.parametrize("model", tiny.VIDEOS)
def test_a_stressed_video_model_is_the_same_function_with_outliers(model: str) -> None:
    video = tiny.video(model)
    call = example_call(video, batch=1, guided=True)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(net):
        prompt = encode_prompt(net, call.conditions)
        model = guided_model(net, call, video.guidance, prompt)
        return model(call.start(), jnp.full(1, 700.0), jnp.int32(0))

    loud = stress(video.denoiser)
    before, after = run(video.denoiser), run(loud)
    assert jnp.abs(before - after).max() <= 1e-5 * jnp.abs(before).max()
    planned = outliers(video.denoiser)
    layers = {item.layer.rsplit("/", 2)[-2] for item in planned}
    assert layers >= {"attn", "mlp"}
    assert all(max(item.loud) >= 50 for item in planned)
    if model == "stdit":
        assert "attn_temp" in layers
    first = planned[0].layer
    assert not np.array_equal(loud.weights()[first], video.denoiser.weights()[first])
