"""Drift is that of the real trajectories, and each layer's noise is its own."""

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.calibrate import calibrate
from viditq_jax.drift import Drift, drift, layer_noise, times, trajectory
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.stress import stress

PROMPTS = ["a red apple", "two blue dogs", "gold"]


def quantized(weight: str, act: str | None = None, match: str = "blocks/*", **more) -> Pipeline:
    rule = Rule((match,), Spec.parse(weight), Spec.parse(act) if act else None, **more)
    return tiny.pipeline().quantized(Recipe((rule,)))


def test_the_last_state_is_what_the_pipeline_gives_whatever_the_batch() -> None:
    pipeline = quantized("int8/channel", "int8/token")
    states = trajectory(pipeline, PROMPTS, seed=3, batch=2)
    assert states.shape == (3, 3, 8, 8, 4)
    np.testing.assert_allclose(states[-1], pipeline.latents(PROMPTS, seed=3), rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(
        trajectory(pipeline, PROMPTS, seed=3)[:, 2:], states[:, 2:], rtol=2e-4, atol=2e-4
    )


def test_drift_of_a_pipeline_from_itself_is_nothing() -> None:
    pipeline = tiny.pipeline()
    same = drift(pipeline, pipeline, PROMPTS)
    assert same.relative_l2 == (0.0, 0.0, 0.0)
    np.testing.assert_allclose(same.cosine, 1, atol=1e-12)
    assert same.t == tuple(times(pipeline))
    assert list(same.t) == sorted(same.t, reverse=True)


def test_drift_of_states_solved_by_hand() -> None:
    reference = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # one step of two samples
    states = np.array([[[1.0, 1.0], [0.0, 1.0]]])
    found = Drift.between([7.0], reference, states)
    assert found.relative_l2 == pytest.approx([(1 + 0.5) / 2])
    assert found.cosine == pytest.approx([(math.sqrt(0.5) + 1) / 2])
    assert found.final == found.relative_l2[-1]


def test_fewer_bits_drift_further() -> None:
    fine, coarse = (drift(tiny.pipeline(), quantized(f"int{n}/channel"), PROMPTS) for n in (8, 4))
    assert 0 < 5 * fine.final < coarse.final
    assert all(a < b for a, b in zip(fine.relative_l2, coarse.relative_l2, strict=True))
    assert json.loads(json.dumps(fine.to_json()))["t"] == list(fine.t)


def test_the_noise_of_a_layer_is_that_of_its_weight_and_inputs() -> None:
    """Written out for the first layer, whose inputs do not depend on any quantized layer."""
    pipeline = quantized("int4/channel", match="x_embedder/proj")
    found = layer_noise(tiny.pipeline(), pipeline, PROMPTS, seed=1)
    assert found.keys() == {"x_embedder/proj"}
    weight = tiny.pipeline().denoiser.weights()["x_embedder/proj"]
    bias = dict(tiny.pipeline().denoiser.variables())["x_embedder/proj/bias"].get_value()
    rounded = pipeline.denoiser.weights()["x_embedder/proj"].weight.dequantize()
    states = trajectory(tiny.pipeline(), PROMPTS, seed=1)
    x = (
        states[0].reshape(3, 4, 2, 4, 2, 4).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 16)
    )  # what step 1 is given
    y = x @ weight.T + bias
    expected = 10 * math.log10(float(jnp.square(y).sum() / jnp.square(x @ (rounded - weight).T).sum()))
    noise = found["x_embedder/proj"]
    assert noise.sqnr_db_steps[1] == pytest.approx(expected, abs=1e-2)
    assert noise.incoherence_steps[1] == pytest.approx(np.abs(x).max() / np.abs(x).mean(), rel=1e-4)
    assert min(noise.sqnr_db_steps) <= noise.sqnr_db <= max(noise.sqnr_db_steps)


def test_no_layer_inherits_the_errors_of_another() -> None:
    """So a layer's noise is the same whether the layers before it are quantized or not."""
    alone = layer_noise(tiny.pipeline(), quantized("int8/channel", "int8/token", "blocks/1/mlp/fc2"), PROMPTS)
    among = layer_noise(tiny.pipeline(), quantized("int8/channel", "int8/token"), PROMPTS)
    assert len(among) == 14
    assert among["blocks/1/mlp/fc2"].sqnr_db == pytest.approx(alone["blocks/1/mlp/fc2"].sqnr_db, abs=1e-3)


def test_six_decibels_are_one_bit() -> None:
    levels = [layer_noise(tiny.pipeline(), quantized(f"int{n}/channel"), PROMPTS[:1]) for n in (5, 8)]
    means = [np.mean([noise.sqnr_db for noise in level.values()]) for level in levels]
    steps = 20 * math.log10((2**7 - 1) / (2**4 - 1))  # levels to each side of zero: 18.6 dB
    assert means[1] - means[0] == pytest.approx(steps, abs=0.7)


def test_outliers_show_in_the_incoherence_and_in_the_noise() -> None:
    plain_one = tiny.pipeline()
    stressed = dataclasses.replace(plain_one, denoiser=stress(plain_one.denoiser))
    rule = Rule(("blocks/*",), Spec.parse("int8/channel"), Spec.parse("int8/token"))
    recipe = Recipe((rule,))
    calm, hard = (layer_noise(each, each.quantized(recipe), PROMPTS) for each in (plain_one, stressed))
    for path in ("blocks/0/attn/qkv", "blocks/0/mlp/fc1", "blocks/1/cross_attn/proj"):
        assert min(hard[path].incoherence_steps) > 2 * max(calm[path].incoherence_steps)
        assert hard[path].sqnr_db < calm[path].sqnr_db - 6
    assert hard["blocks/0/mlp/fc2"].sqnr_db == pytest.approx(calm["blocks/0/mlp/fc2"].sqnr_db, abs=0.5)
    assert json.loads(json.dumps(hard["blocks/0/attn/qkv"].to_json()))["incoherence"] > 10


def test_what_prepares_an_input_shows_in_its_incoherence() -> None:
    """A rotation spreads an outlier over all channels; a layer without transforms changes nothing."""
    plain_one = tiny.pipeline()
    stressed = dataclasses.replace(plain_one, denoiser=stress(plain_one.denoiser))
    rotate = Rule(
        ("blocks/0/mlp/fc1",), Spec.parse("int8/channel"), Spec.parse("int8/token"), prepare=("hadamard",)
    )
    plainly = Rule(("blocks/1/mlp/fc1",), Spec.parse("int8/channel"), Spec.parse("int8/token"))
    found = layer_noise(stressed, stressed.quantized(Recipe((rotate, plainly))), PROMPTS)
    rotated, same = found["blocks/0/mlp/fc1"], found["blocks/1/mlp/fc1"]
    assert max(rotated.prepared_incoherence_steps) < min(rotated.incoherence_steps) / 2
    assert same.prepared_incoherence_steps == pytest.approx(same.incoherence_steps, rel=1e-5)
    assert rotated.to_json()["prepared_incoherence"] == pytest.approx(
        max(rotated.prepared_incoherence_steps), rel=1e-5
    )


def test_balances_that_moved_to_other_layers_count_as_no_noise() -> None:
    """The quantized attn/proj takes inputs that attn/qkv divided: in other units than the float model's."""
    pipeline = tiny.pipeline()
    rule = Rule(
        ("blocks/*/attn/*",),
        Spec.parse("int8/channel"),
        Spec.parse("int8/token"),
        prepare=("balance:alpha=0.5",),
    )
    recipe = Recipe((rule,))
    stats = calibrate(pipeline, PROMPTS, recipe)
    small = pipeline.quantized(recipe, stats)
    with pytest.raises(ValueError, match="give the statistics"):
        layer_noise(pipeline, small, PROMPTS)
    found = layer_noise(pipeline, small, PROMPTS, stats)
    assert min(noise.sqnr_db for noise in found.values()) > 30


def test_parameters_that_change_over_the_ranges_are_those_of_the_step() -> None:
    pipeline = tiny.pipeline()
    t = times(pipeline)
    rule = Rule(("blocks/*/mlp/fc1",), Spec.parse("int8/channel"), Spec.parse("int8/tensor/static/range"))
    recipe = Recipe((rule,), ranges=(int(t[1]) + 1,))
    stats = calibrate(pipeline, PROMPTS, recipe)
    small = pipeline.quantized(recipe, stats)
    found = layer_noise(pipeline, small, PROMPTS, stats)
    assert min(min(noise.sqnr_db_steps) for noise in found.values()) > 25
    states = trajectory(small, PROMPTS)
    np.testing.assert_allclose(states[-1], small.latents(PROMPTS), rtol=2e-4, atol=2e-4)
    assert drift(pipeline, small, PROMPTS).final < 0.1


def test_a_float_pipeline_has_no_noise_to_measure() -> None:
    with pytest.raises(ValueError, match="not quantized"):
        layer_noise(tiny.pipeline(), tiny.pipeline(), PROMPTS)
