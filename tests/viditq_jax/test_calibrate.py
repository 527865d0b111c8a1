"""Statistics from trajectories: those of every step of the float model, and of nothing else."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.calibrate import calibrate, check_stats_file, load_stats
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.programs import Call, encode_prompt, guided_model
from viditq_jax.quant.observe import observe
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule, load_recipe
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats, Stats
from viditq_jax.sampling.sample import draw_noise, rows, sample_keys

PROMPTS = ["a red apple", "two blue dogs", "gold"]
STATIC = load_recipe("naive-static-w8a8")


def by_hand(pipeline: Pipeline, prompts: list[str], seed: int, bounds: tuple[int, ...] = ()) -> Stats:
    """The sampling loop written out in Python, with taps in each step; the prompt counts in every range."""
    conditions, scale = pipeline.encode(prompts, guide=True), pipeline.guidance.scale
    keys = sample_keys(seed, 0, len(prompts))
    x = draw_noise(keys, pipeline.latent_shape())
    call = Call(conditions, scale, x, keys)
    sampler, net = pipeline.sampler, pipeline.denoiser
    memory, table = sampler.init(x), jax.tree.map(jnp.asarray, rows(sampler, pipeline.steps))
    stats = {path: LayerStats.empty(w.shape[1], len(bounds) + 1) for path, w in net.weights().items()}

    @jax.jit  # one step; the loop, the ranges and the first step are told from here
    def step(net: Net, stats: Stats, x: jax.Array, memory: Any, row: Any, r: int, initial: bool) -> Any:
        def predict(net: Net) -> jax.Array:
            model = guided_model(net, call, pipeline.guidance, prompt)
            return model(x, jnp.full(len(prompts), row["t"]), row["i"])

        out, stats = observe(net, predict, stats, r=r, initial=initial)
        return *sampler.step(x, out, row, memory, keys), stats

    texts = np.array(conditions["y"])
    for text, mask in zip(texts, np.asarray(conditions["mask"]), strict=True):
        text[:] = np.resize(text[mask], text.shape)  # real tokens alone, over and over
    real = {**conditions, "y": jnp.asarray(texts)}

    @jax.jit
    def look_at_prompt(net: Net, stats: Stats) -> tuple[Any, Stats]:
        _, stats = observe(net, lambda net: encode_prompt(net, real), stats, r=slice(None), initial=True)
        return encode_prompt(net, conditions), stats

    prompt, stats = look_at_prompt(net, stats)
    for i in range(pipeline.steps):
        row = {name: column[i] for name, column in table.items()}
        r = sum(float(row["t"]) >= bound for bound in bounds)
        x, memory, stats = step(net, stats, x, memory, row, r, i == 0)
    return stats


def assert_close(a: Stats, b: Stats) -> None:
    """Compiled and eager sums add in other orders: a few float32 roundings, carried through three steps."""
    assert a.keys() == b.keys()
    for path in a:
        size = float(np.abs(b[path].absmax).max())
        for name in ("low", "high", "mean", "initial"):
            found, wanted = getattr(a[path], name), getattr(b[path], name)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * size, err_msg=f"{path} {name}")
        np.testing.assert_array_equal(a[path].count, b[path].count, err_msg=path)


def test_statistics_are_those_of_all_steps_of_the_trajectory() -> None:
    pipeline = tiny.pipeline(depth=1)
    stats, wanted = calibrate(pipeline, PROMPTS, STATIC, seed=3), by_hand(pipeline, PROMPTS, 3)
    assert set(stats) == set(pipeline.denoiser.weights())
    assert_close(stats, wanted)


def test_each_denoising_range_has_its_own_statistics() -> None:
    """The three steps of this pipeline have times above, between and below the bounds."""
    pipeline = tiny.pipeline(depth=1)
    per_range = Recipe(
        (Rule(("*",), Spec.parse("int8/channel"), Spec.parse("int8/tensor/static/range")),), ranges=(400, 700)
    )
    stats = calibrate(pipeline, PROMPTS, per_range, seed=3)
    assert_close(stats, by_hand(pipeline, PROMPTS, 3, bounds=(400, 700)))
    layer, prompt = stats["blocks/0/mlp/fc1"], stats["blocks/0/cross_attn/kv_linear"]
    assert len({float(high.max()) for high in layer.high}) == 3
    np.testing.assert_array_equal(prompt.high[0], prompt.high[2])


def test_a_range_without_a_step_is_refused() -> None:
    rule = Rule(("*",), Spec.parse("int8/channel"), Spec.parse("int8/tensor/static/range"))
    with pytest.raises(ValueError, match=r"1 steps of this sampler have no time in the ranges \[0\]"):
        calibrate(tiny.pipeline(depth=1), PROMPTS, Recipe((rule,), ranges=(400,)), steps=1)


def test_a_calibration_that_was_cut_short_goes_on_with_the_same_result(tmp_path: Path) -> None:
    pipeline, file = tiny.pipeline(depth=1), tmp_path / "stats.safetensors"
    whole = calibrate(pipeline, PROMPTS, STATIC, seed=3, batch=1)

    class CutShortError(Exception):
        pass

    def cut(count: int) -> None:
        raise CutShortError

    with pytest.raises(CutShortError):
        calibrate(pipeline, PROMPTS, STATIC, seed=3, batch=1, file=file, advance=cut)
    finished: list[int] = []
    again = calibrate(pipeline, PROMPTS, STATIC, seed=3, batch=1, file=file, advance=finished.append)
    assert finished == [1, 1, 1]  # the first was done before
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    finished.clear()
    calibrate(pipeline, PROMPTS, STATIC, seed=3, batch=1, file=file, advance=finished.append)
    assert finished == [3]


def test_a_calibration_that_was_killed_goes_on_with_the_same_result(tmp_path: Path) -> None:
    """SIGKILL, at any moment after the first batch; nothing but the statistics is left."""
    file, pipeline = tmp_path / "stats.safetensors", tiny.pipeline(depth=1)
    script = (
        "from pathlib import Path; from tests import tiny; from viditq_jax import calibrate, load_recipe\n"
        f"calibrate(tiny.pipeline(depth=1), {PROMPTS * 4}, load_recipe('naive-static-w8a8'), seed=3, batch=1,"
        f" file=Path({str(file)!r}), advance=lambda n: print(n, flush=True))"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "1\n"
    run.kill()
    run.wait()
    run.stdout.close()
    done = load_stats(file)[1]["done"]
    assert 1 <= done < 12
    finished: list[int] = []
    again = calibrate(pipeline, PROMPTS * 4, STATIC, seed=3, batch=1, file=file, advance=finished.append)
    assert finished[0] == done
    whole = calibrate(pipeline, PROMPTS * 4, STATIC, seed=3, batch=1)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert [entry.name for entry in tmp_path.iterdir() if "partial" not in entry.name] == [file.name]


def test_statistics_that_were_cut_short_or_are_of_another_model_are_not_quantized_with(
    tmp_path: Path,
) -> None:
    pipeline, file = tiny.pipeline(depth=1), tmp_path / "stats.safetensors"
    calibrate(pipeline, PROMPTS[:1], STATIC, file=file)
    facts = load_stats(file)[1]
    check_stats_file(facts, pipeline, STATIC)
    with pytest.raises(ValueError, match="were cut short"):
        check_stats_file({**facts, "done": 0}, pipeline, STATIC)
    other = dataclasses.replace(pipeline, denoiser=pipeline.denoiser.map_weights(lambda _, w: 2 * w))
    with pytest.raises(ValueError, match="of another weights"):
        check_stats_file(facts, other, STATIC)


def test_an_impossible_recipe_is_refused_before_the_model_runs() -> None:
    pipeline = dataclasses.replace(tiny.pipeline(depth=1), text_encoder=None)  # which could not run
    steps = ("hadamard", "balance:alpha=0.5")
    wrong = Rule(("blocks/*",), Spec.parse("int8/channel"), Spec.parse("int8/token"), prepare=steps)
    with pytest.raises(ValueError, match="balance needs the statistics of its inputs; put it before"):
        quantize_pipeline(pipeline, Recipe((wrong,)), PROMPTS)


def test_a_file_of_another_run_or_none_is_refused(tmp_path: Path) -> None:
    pipeline, file = tiny.pipeline(depth=1), tmp_path / "stats.safetensors"
    calibrate(pipeline, PROMPTS[:1], STATIC, seed=3, file=file)
    with pytest.raises(ValueError, match="another conditions, seed"):
        calibrate(pipeline, PROMPTS[:2], STATIC, seed=4, file=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is no file of statistics"):
        calibrate(pipeline, PROMPTS[:1], STATIC, seed=3, file=file)


def test_statistics_of_a_net_serve_the_recipe_that_asked_for_them_alone() -> None:
    pipeline = tiny.pipeline(depth=1)
    stats = calibrate(pipeline, PROMPTS[:1], STATIC)
    gptq = Recipe((Rule(("blocks/*",), Spec.parse("int4/channel"), rounding="gptq"),))
    with pytest.raises(RecipeError, match=r"blocks/0/attn/qkv: no Gram matrix"):
        pipeline.quantized(gptq, stats)


def test_batches_merge_to_the_statistics_of_all() -> None:
    """The last batch once won (D4); a last batch that is smaller counts like the others."""
    finished: list[int] = []
    pipeline = tiny.pipeline(depth=1)
    assert_close(
        calibrate(pipeline, PROMPTS, STATIC, seed=3, batch=2, advance=finished.append),
        calibrate(pipeline, PROMPTS, STATIC, seed=3),
    )
    assert finished == [2, 1]


def test_the_last_step_alone_would_give_other_statistics() -> None:
    """So the tests above can tell whether all steps count."""
    pipeline = tiny.pipeline(depth=1)
    three, one = (calibrate(pipeline, PROMPTS[:1], STATIC, seed=3, steps=steps) for steps in (3, 1))
    assert np.any(np.asarray(three["blocks/0/mlp/fc1"].high) > np.asarray(one["blocks/0/mlp/fc1"].high))
    assert int(three["blocks/0/mlp/fc1"].count[0]) == 3 * int(one["blocks/0/mlp/fc1"].count[0])


def test_a_quantized_pipeline_and_a_recipe_that_does_not_fit_are_refused() -> None:
    pipeline = tiny.pipeline(depth=1)
    with pytest.raises(ValueError, match="statistics are of the float model"):
        calibrate(pipeline.quantized(load_recipe("w8a8-dynamic")), PROMPTS, STATIC)
    with pytest.raises(RecipeError, match="nowhere matches none"):
        calibrate(pipeline, PROMPTS, Recipe((Rule(("nowhere",), Spec.parse("int8/channel")),)))


def test_a_model_that_gives_nan_is_refused_and_the_layer_named() -> None:
    """A static scale made of NaN would make every output NaN."""
    pipeline = tiny.pipeline(depth=1)
    broken = pipeline.denoiser.map_weights(
        lambda path, weight: weight.at[0, 0].set(jnp.nan) if path == "blocks/0/mlp/fc1" else weight
    )
    with pytest.raises(ValueError, match=r"^2 layers .*: blocks/0/mlp/fc2, final_layer"):
        calibrate(dataclasses.replace(pipeline, denoiser=broken), PROMPTS[:1], STATIC, steps=1)


def test_texts_count_where_nothing_but_the_prompt_is_seen() -> None:
    pipeline, texts = tiny.pipeline(depth=1), ["heart of gold", "cat face"]
    plain = calibrate(pipeline, PROMPTS[:1], STATIC, seed=3)
    found = calibrate(pipeline, PROMPTS[:1], STATIC, texts=texts, seed=3)
    prompt_alone = {"blocks/0/cross_attn/kv_linear", "y_embedder/y_proj/fc1", "y_embedder/y_proj/fc2"}
    assert {path for path in plain if (plain[path].count != found[path].count).any()} == prompt_alone
    conditions = pipeline.encode(texts, guide=False)
    seen = np.asarray(conditions["y"])[np.asarray(conditions["mask"])]
    high = np.maximum(plain["y_embedder/y_proj/fc1"].high[0], seen.max(0))
    np.testing.assert_allclose(found["y_embedder/y_proj/fc1"].high[0], high, rtol=1e-6)
    assert (seen.max(0) > plain["y_embedder/y_proj/fc1"].high[0]).any()  # they tell something new
    with pytest.raises(ValueError, match="takes no prompts, so there are no texts"):
        calibrate(tiny.video("latte"), [1], STATIC, texts=texts)
