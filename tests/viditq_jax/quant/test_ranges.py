"""Parameters that change over the denoising steps: which range a time is in, and how one is chosen."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax import programs
from viditq_jax.calibrate import calibrate
from viditq_jax.load import load_pipeline
from viditq_jax.nn.linear import linear
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.qweight import quantized_part
from viditq_jax.quant.ranges import PerRange, at_range, per_range, range_index, runs, weights_change
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import Stats
from viditq_jax.sampling.sample import advance, draw_noise, rows, sample_keys

PROMPTS = ["a red apple", "two blue dogs"]
W8, W4 = Spec.parse("int8/channel/asym"), Spec.parse("int4/channel/asym")
STATIC, DYNAMIC = Spec.parse("int8/tensor/asym/static/range"), Spec.parse("int8/token")
ONCE = Rule(("*/kv_linear",), W8, DYNAMIC)  # runs once a prompt, before the loop
VECTORS = Recipe((ONCE, Rule(("blocks/*",), W8, STATIC)), ranges=(400, 700), name="vectors")
WEIGHTS = Recipe(
    (ONCE, Rule(("blocks/*",), W4, DYNAMIC, prepare=("balance:alpha=0.4,ranges=true",))),
    ranges=(400, 700), name="weights",
)  # fmt: skip
BITS = Recipe((ONCE, Rule(("blocks/*",), W4, DYNAMIC, weight_in=((2, W8),))), ranges=(400, 700), name="bits")


def test_times_at_the_edges_of_ranges():
    """The release's intervals [0, 500] and [501, 1000]."""
    assert range_index(np.asarray([0, 500, 501, 1000]), (501,)).tolist() == [0, 0, 1, 1]
    assert range_index(np.asarray([999.0, 500.5]), ()).tolist() == [0, 0]


def test_runs_are_the_stretches_of_equal_ranges_in_order():
    assert list(runs(np.asarray([2, 2, 1, 0, 0]))) == [(2, slice(0, 2)), (1, slice(2, 3)), (0, slice(3, 5))]
    assert list(runs(np.asarray([1]))) == [(1, slice(0, 1))]


def test_a_value_of_a_range_is_the_one_that_was_put_there():
    values = [{"a": jnp.full(3, i), "b": jnp.full((2, 2), -i)} for i in range(3)]
    both = PerRange.of(values)
    jax.tree.map(np.testing.assert_array_equal, both.at(1), values[1])
    traced = jax.jit(lambda value, r: value.at(r))(both, jnp.int32(2))
    jax.tree.map(np.testing.assert_array_equal, traced, values[2])


@cache
def stats() -> Stats:
    """In the three ranges that all recipes here have."""
    return calibrate(tiny.pipeline(depth=1), PROMPTS, VECTORS)


def quantized(recipe: Recipe) -> Pipeline:
    return tiny.quantized(tiny.pipeline(depth=1), recipe, stats())


@partial(jax.jit, static_argnames=("sampler", "guidance"))
def step(net, call, x, memory, row, *, sampler, guidance):
    """One step of a sampler, of a net whose parameters never change."""
    assert not per_range(net.params)
    model = programs.guided_model(net, call, guidance)
    return advance(model, sampler, x, memory, call.keys, row)


def by_hand(pipeline: Pipeline, ranges: tuple[int, ...] = (2, 1, 0)) -> np.ndarray:
    """Three steps, each with the parameters of one range."""
    sampler = pipeline.sampler
    keys = sample_keys(0, 0, len(PROMPTS))
    x = draw_noise(keys, pipeline.latent_shape())
    memory, table = sampler.init(x), rows(sampler, pipeline.steps)
    call = programs.Call(pipeline.encode(PROMPTS, guide=True), jnp.float32(3), x, keys)
    for i, r in enumerate(ranges):
        row = {name: column[i : i + 1] for name, column in table.items()}
        net, guidance = at_range(pipeline.denoiser, r), pipeline.plan().guidance
        x, memory = step(net, call, x, memory, row, sampler=sampler, guidance=guidance)
    return np.asarray(x)


@pytest.mark.parametrize("recipe", [VECTORS, WEIGHTS, BITS], ids=lambda recipe: recipe.name)
def test_each_step_uses_the_parameters_of_its_range(recipe):
    """They were once those of the first range for ever (D3). Compiled as one, steps round as on their own."""
    pipeline = quantized(recipe)
    assert weights_change(pipeline.denoiser) == (recipe is not VECTORS)
    times = np.asarray(pipeline.sampler.table(pipeline.steps)["t"])
    assert range_index(times, recipe.ranges).tolist() == [2, 1, 0]
    found, expected = np.asarray(pipeline.latents(PROMPTS)), by_hand(pipeline)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    other = np.abs(by_hand(pipeline, (0, 0, 0)) - expected).max()
    assert other > 5e-3 * np.abs(expected).max()  # so the line above can tell


@pytest.mark.parametrize("recipe", [VECTORS, WEIGHTS, BITS], ids=lambda recipe: recipe.name)
def test_a_pipeline_with_ranges_reloads_bit_for_bit(recipe, tmp_path):
    pipeline = quantized(recipe)
    pipeline.save(tmp_path / "small")
    tiny.assert_same(load_pipeline(tmp_path / "small"), pipeline)


def test_a_trajectory_with_ranges_is_one_program():
    pipeline = quantized(VECTORS)
    pipeline.latents(PROMPTS)
    before = programs.denoise._cache_size()
    pipeline.latents(PROMPTS, seed=5)
    assert programs.denoise._cache_size() == before


def test_small_vectors_are_shared_weights_with_a_scale_a_range():
    weight = quantized(VECTORS).denoiser.weights()["blocks/0/mlp/fc1"]
    assert weight.weight.values.ndim == 2
    assert weight.act_scale.stacked.shape == (3, 1, 1)


def test_layers_that_run_once_a_prompt_have_the_same_scale_in_every_range():
    """Their inputs do not change over the steps, so the scale of any range is theirs."""
    everywhere = quantized(dataclasses.replace(VECTORS, rules=VECTORS.rules[1:]))
    scale = everywhere.denoiser.weights()["blocks/0/cross_attn/kv_linear"].act_scale.stacked
    np.testing.assert_array_equal(scale[0], scale[2])
    assert np.isfinite(everywhere.latents(PROMPTS)).all()


def test_a_balance_and_a_scale_may_both_change_over_the_ranges():
    both = Rule(("blocks/*",), W8, STATIC, prepare=("balance:alpha=0.4,ranges=true",))
    pipeline = quantized(Recipe((ONCE, both), ranges=(400, 700)))
    assert pipeline.denoiser.weights()["blocks/0/mlp/fc1"].stacked.act_scale.shape == (3, 1, 1)
    found, expected = np.asarray(pipeline.latents(PROMPTS)), by_hand(pipeline)
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


def test_a_layer_that_is_called_without_a_range_says_what_to_do():
    net = quantized(VECTORS).denoiser
    with pytest.raises(ValueError, match="choose one by at_range"):
        net.weights()["blocks/0/mlp/fc1"].linear(jnp.ones((1, 32)), None)


def test_bits_that_change_keep_each_weight_once_and_no_more():
    """Of three ranges two have 4 bits: half a byte a weight, and one for the 8 bits of the third."""
    weights = quantized(BITS).denoiser.weights()
    slot = weights["blocks/0/mlp/fc1"]
    assert [each.weight.spec.bits for each in slot.values] == [4, 8]
    assert [slot.at(r).weight.spec.bits for r in range(3)] == [4, 4, 8]
    assert [each.weight.values.nbytes for each in slot.values] == [128 * 16, 128 * 32]
    assert quantized_part(slot) is slot.values[0]


def test_a_range_that_is_traced_chooses_when_it_multiplies():
    slot = quantized(BITS).denoiser.weights()["blocks/0/mlp/fc1"]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32))
    traced = jax.jit(lambda slot, x, r: linear(slot.at(r), x))
    for r in range(3):
        np.testing.assert_allclose(traced(slot, x, r), linear(slot.at(r), x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="called without a range"):
        linear(slot, x)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(("*",), W4, DYNAMIC, weight_in=((3, W8),)), r"ranges \[3\] are not among 0 to 2"),
        (Rule(("*",), None, weight_in=((0, W8),)), "not quantized in the other ranges"),
        (Rule(("*",), W4, DYNAMIC, weight_in=((0, DYNAMIC),)), "int8/token is for inputs"),
        (dataclasses.replace(WEIGHTS.rules[1], weight_in=((0, W8),)), "choose one of the two"),
    ],
)
def test_impossible_changes_of_bits_are_refused(rule, words):
    with pytest.raises(RecipeError, match=words):
        Recipe((rule,), ranges=(400, 700)).resolve({})


def test_bits_that_change_survive_a_file():
    assert Recipe.from_json(BITS.to_json()) == BITS
    broken = {
        **BITS.to_json(),
        "rules": [{"match": "*", "weight": "int4/channel", "weight_in": {"x": "int8"}}],
    }
    with pytest.raises(RecipeError, match="rule 1: weight_in: 'x'"):
        Recipe.from_json(broken)
