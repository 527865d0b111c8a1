"""Models that are made up to be timed have the layout of real ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.bench.models import Flop, Workload, call, deep, float_pipeline, quantized, step_flop
from viditq_jax.bench.pipelines import bench_workload, variant
from viditq_jax.models import dit, pixart, stdit
from viditq_jax.net import Net, abstract
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.size import weight_bytes

RATES = {f"{name}_flop_per_s": 1e12 for name in ("float32", "bfloat16", "int8")}
TINY = Workload("tiny dit", "dit", "tiny", batch=1, steps=2)


@pytest.fixture(autouse=True)
def tiny_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks, of a width that groups of 64 divide."""
    config = dit.Config(width=64, depth=2, heads=2, patch_size=8, classes=10)
    monkeypatch.setitem(dit.CONFIGS, "tiny", config)


def shapes(net: Net) -> list:
    leaves, tree = jax.tree.flatten(net)
    return [str(tree), *((leaf.shape, leaf.dtype) for leaf in leaves)]


@pytest.mark.parametrize("name", ["w4a8-timestep", "w4a8-plus", "naive-static-w8a8", "q-diffusion-w4a8"])
def test_made_up_statistics_give_the_layout_that_an_artifact_has(name: str) -> None:
    """Of balances and rotations, ranges, low-rank branches, static inputs, and learned rounding."""
    net, recipe = float_pipeline(TINY, jnp.float32).denoiser, load_recipe(name)
    expected = quantize(jax.eval_shape(lambda net: net, net), recipe)
    assert shapes(quantized(net, recipe)) == shapes(expected)


def test_a_deep_net_is_the_first_block_again_and_again_in_memory_of_its_own() -> None:
    pipeline = float_pipeline(TINY, jnp.bfloat16)
    net = deep(quantized(pipeline.denoiser, load_recipe("w8a8-dynamic")), TINY)
    assert shapes(net) == shapes(
        quantize(abstract(dit.build, dit.CONFIGS["tiny"]).astype(jnp.bfloat16), load_recipe("w8a8-dynamic"))
    )
    first, second = (net.weights()[f"blocks/{i}/attn/qkv"] for i in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer()


def test_made_up_inputs_are_what_the_model_takes() -> None:
    pipeline = variant(TINY, "w8a8-dynamic")
    given = call(pipeline, TINY, 0)
    out = jax.jit(pipeline.denoiser)(
        jnp.concatenate([given.start()] * 2).astype(jnp.bfloat16), jnp.full(2, 500.0), given.conditions["y"]
    )
    assert out.shape == (2, 32, 32, 8)
    assert bool(jnp.isfinite(out).all())


def test_the_cost_of_a_step_is_counted_by_hand() -> None:
    """Each token meets 14 d^2 weights in a block: qkv 3, proj 1, cross q and proj 2, the MLP 8. It meets all
    tokens, and the prompt's, with d products for the scores and d for the values. DiT has no prompt: 12 d^2.
    """
    d, n, prompt = 1152, 4096, 300
    config = dataclasses.replace(pixart.CONFIGS["pixart-sigma-xl-2-1024-ms"], depth=2)
    found = step_flop(abstract(pixart.build, config), config, 2)
    assert found == Flop(2 * 2 * 2 * n * 14 * d**2, 2 * 2 * 4 * n * (n + prompt) * d)
    assert found.ideal_s({"int8_flop_per_s": 2e12, "bfloat16_flop_per_s": 1e12}, "int8") == pytest.approx(
        found.linear / 2e12 + found.attention / 1e12
    )
    small = dit.CONFIGS["tiny"]
    assert step_flop(abstract(dit.build, small), small, 1) == Flop(
        2 * 2 * 16 * 12 * 64**2, 2 * 4 * 16**2 * 64
    )


def test_a_step_of_a_video_is_counted_by_hand() -> None:
    """As above, and 4 d^2 weights of the attention across frames, in which a token meets one of each."""
    d, places, frames, prompt = 1152, 1024, 16, 120
    config = dataclasses.replace(stdit.CONFIGS["stdit-xl-2-16x512x512"], depth=1)
    n = frames * places
    assert step_flop(abstract(stdit.build, config), config, 1) == Flop(
        2 * n * 18 * d**2, 4 * n * (places + frames + prompt) * d
    )


def test_a_video_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = stdit.Config(
        frames=3, input_size=8, depth=1, width=32, heads=2, text_length=5, caption_channels=16
    )
    monkeypatch.setitem(stdit.CONFIGS, "tiny", config)
    workload = Workload("tiny stdit", "stdit", "tiny", batch=1, steps=2)
    pipeline = float_pipeline(workload, jnp.float32)
    given = call(pipeline, workload, 0)
    assert given.start().shape == (1, 3, 8, 8, 4)


def test_the_rows_of_a_model_tell_time_and_memory_of_every_variant() -> None:
    rows = bench_workload(TINY, ["w8a8-dynamic"], RATES, samples=1, seconds=1.0)
    assert [(row["part"], row["recipe"]) for row in rows] == [
        (part, recipe) for part in ("step", "loop") for recipe in ("float32", "bfloat16", "w8a8-dynamic")
    ]  # no decoder, so no pictures
    for row in rows:
        assert row["case"] == f"tiny dit, {row['part']}"
        assert row["program_bytes"] > row["parameter_bytes"] > 0
        assert row["median_s"] > 0
    float32, bfloat16, small = rows[:3]
    assert float32["ratio_vs_float"] == 1
    assert small["baseline_median_s"] == float32["median_s"]
    assert float32["parameter_bytes"] == 2 * bfloat16["parameter_bytes"]
    sizes = weight_bytes(variant(TINY, "w8a8-dynamic").denoiser).values()
    saved = sum(row.dense - row.stored for row in sizes)
    assert bfloat16["parameter_bytes"] - small["parameter_bytes"] == saved
    flop = small["linear_flop"] + small["attention_flop"]
    assert small["fraction_of_ideal"] == pytest.approx(flop / 1e12 / small["median_s"], abs=1e-4)
    assert "images_per_second" not in float32
    assert rows[3]["images_per_second"] == pytest.approx(1 / rows[3]["median_s"], rel=1e-3)
