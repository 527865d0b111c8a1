import dataclasses
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from tests import tiny
from viditq_jax import programs
from viditq_jax.calibrate import calibrate
from viditq_jax.checkpoint import ArtifactError, weight_disk_bytes
from viditq_jax.load import load_pipeline
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.qweight import QWeight
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.stats import Stats
from viditq_jax.sealed import digest

PROMPTS = ["a red apple", "two blue dogs", "gold"]


def test_the_same_seed_gives_the_same_pictures_and_another_does_not() -> None:
    first, again, other = (tiny.pipeline()(PROMPTS, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_sample_i_depends_on_seed_and_i_alone() -> None:
    """In a batch of three, alone, or as the second of a later batch; XLA may sum in another order, hence
    1e-5. The later batch runs in the program of the first: there nothing may differ.
    """
    together = tiny.pipeline().latents(PROMPTS, seed=1)
    alone = tiny.pipeline().latents(PROMPTS[2:], seed=1, first=2)
    shifted = tiny.pipeline().latents([*PROMPTS[1:], "cat"], seed=1, first=1)
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5 * float(jnp.abs(together).max()))
    np.testing.assert_array_equal(shifted[1], together[2])


def test_a_new_seed_prompt_or_scale_compiles_nothing() -> None:
    tiny.pipeline()(PROMPTS, seed=1, guidance=2.0)
    counted = (programs.denoise, programs.encode_text, programs.decode)
    before = [fn._cache_size() for fn in counted]
    tiny.pipeline()(["cat", "dog", "pizza"], seed=9, guidance=7.5, negative="table")
    assert [fn._cache_size() for fn in counted] == before
    tiny.pipeline().encoder.encode_text(["cat"] * 5)
    assert programs.encode_text._cache_size() == before[1] + 1, "the count above can see a compilation"


def test_guidance_of_one_is_the_conditional_model_alone() -> None:
    """Scale 1 takes a program without the unconditional half; just beside 1 the doubled program must
    agree.
    """
    plain = tiny.pipeline().latents(PROMPTS, seed=1, guidance=1.0)
    near = tiny.pipeline().latents(PROMPTS, seed=1, guidance=1.0 + 1e-7)
    np.testing.assert_allclose(near, plain, atol=1e-4 * float(jnp.abs(plain).max()))


def test_the_negative_prompt_and_the_null_table_matter() -> None:
    pipeline = tiny.pipeline()
    table = dataclasses.replace(
        pipeline, facts={**pipeline.facts, "guidance": {"scale": 3.0, "null": "table", "mask": "prompt"}}
    )
    plain, against = (pipeline.latents(PROMPTS, seed=1, negative=words) for words in ("", "table"))
    assert not np.allclose(plain, against)
    null, prompt = np.split(np.asarray(table.encode(PROMPTS, guide=True)["y"]), 2)
    values = dict(pipeline.denoiser.variables())["y_embedder/y_embedding"].get_value()
    np.testing.assert_array_equal(null, np.broadcast_to(values, null.shape))
    np.testing.assert_array_equal(prompt, pipeline.encode(PROMPTS, guide=False)["y"])
    assert not np.allclose(null, np.split(np.asarray(pipeline.encode(PROMPTS, guide=True)["y"]), 2)[0])


def test_a_run_encodes_its_negative_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, encoded = dataclasses.replace(tiny.pipeline()), []
    real = programs.encode_text

    def counted(net: Net, ids: Array, mask: Array) -> Array:
        encoded.append(len(ids))
        return real(net, ids, mask)

    monkeypatch.setattr(programs, "encode_text", counted)
    shapes = jax.eval_shape(lambda: pipeline.encode(PROMPTS, guide=True))
    assert encoded == [3, 1], "a trace keeps nothing"
    empty, cat, empty_again, cat_again = (
        pipeline.encode(PROMPTS, negative=words, guide=True) for words in ("", "cat", "", "cat")
    )
    assert encoded[2:] == [3, 1] * 4, "only the last one is kept"
    again = pipeline.encode(PROMPTS, negative="cat", guide=True)
    assert encoded[10:] == [3]
    for first, second in ((empty, empty_again), (cat, cat_again), (cat, again)):
        jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.allclose(empty["y"], cat["y"])
    assert jax.tree.map(jnp.shape, cat) == jax.tree.map(jnp.shape, shapes)


@cache
def stats() -> Stats:
    """Of one block, with the Gram matrices that w4a8 asks for, which serve the other recipes as well."""
    return calibrate(tiny.pipeline(depth=1), PROMPTS, load_recipe("w4a8"))


@pytest.mark.parametrize("recipe", ["float", "w8a8", "w4a8-naive", "w4a8", "fp8"])
def test_a_saved_pipeline_comes_back_bit_for_bit(recipe: str, tmp_path: Path) -> None:
    """Rotations included: the release drew them anew on loading (D9). One recipe also makes pictures."""
    quantized = tiny.pipeline(jnp.bfloat16, depth=1).quantized(load_recipe(recipe), stats())
    quantized.save(tmp_path / "artifact")
    loaded = load_pipeline(tmp_path / "artifact")
    assert loaded.facts["dtype"] == "bfloat16"
    tiny.assert_same(loaded, quantized)
    if recipe == "w8a8":
        pictures = quantized(PROMPTS, seed=3)
        np.testing.assert_array_equal(quantized(PROMPTS, seed=3), pictures)
        counted = (programs.denoise, programs.encode_text, programs.decode)
        before = [fn._cache_size() for fn in counted]
        np.testing.assert_array_equal(loaded(PROMPTS, seed=3), pictures)
        assert [fn._cache_size() for fn in counted] == before, "a loaded pipeline compiles nothing anew"


def test_pictures_of_a_quantized_pipeline_agree_in_batches_of_1_4_and_16() -> None:
    """Integer products are equal; float sums of the rest round otherwise, and may move a code by one."""
    quantized = tiny.pipeline(depth=1).quantized(load_recipe("w8a8"), stats())
    prompts = (PROMPTS * 16)[:16]
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8, 8, 4), np.float32))
    together = quantized.latents(prompts, noise=noise)
    size = float(jnp.abs(together).max())
    for batch in (1, 4):
        part = quantized.latents(prompts[4 : 4 + batch], first=4, noise=noise[4 : 4 + batch])
        assert float(jnp.abs(part - together[4 : 4 + batch]).max()) <= 0.02 * size


def test_a_quantized_artifact_holds_integers_on_disk(tmp_path: Path) -> None:
    """An int8 matrix takes n k bytes at most (they may compress), besides headers of less than 1 kB each."""
    quantized = tiny.pipeline(jnp.bfloat16, depth=1).quantized(load_recipe("w8a8-dynamic"))
    quantized.save(tmp_path / "w8a8")
    integers = 0
    for path, weight in quantized.denoiser.weights().items():
        if isinstance(weight, QWeight):
            n, k = weight.shape
            integers += 1
            assert n < weight_disk_bytes(tmp_path / "w8a8", "denoiser", [path]) < n * k + 8 * n + 5 * 1000
    assert integers == 7  # qkv, proj, q_linear, kv_linear, proj, fc1, fc2


def test_parts_that_are_missing_are_named() -> None:
    bare = dataclasses.replace(tiny.pipeline(), decoder=None, text_encoder=None)
    with pytest.raises(ValueError, match="--text-encoder and --tokenizer"):
        bare(PROMPTS)
    with pytest.raises(ValueError, match="--vae"):
        bare.decode(jnp.zeros((1, 8, 8, 4)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"conditions": []}, "no conditions"),
        ({"conditions": [3]}, "takes prompts, not int"),
        ({"conditions": PROMPTS, "size": (17, 16)}, "multiples of 4 pixels"),
        ({"conditions": PROMPTS, "steps": 0}, "step"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny.pipeline()(**arguments)


def test_another_sampler_keeps_the_noise_schedule_of_the_model() -> None:
    pipeline = tiny.pipeline()
    facts = {**pipeline.facts["sampler"], "options": {"grid": "integer", "beta_schedule": "scaled_linear"}}
    pipeline = dataclasses.replace(pipeline, facts={**pipeline.facts, "sampler": facts})
    assert pipeline.with_sampler("ddim", eta=0.5).sampler.beta_schedule == "scaled_linear"
    with pytest.raises(ValueError, match="flow_euler"):
        pipeline.with_sampler("flow_euler")
    with pytest.raises(LookupError, match="did you mean ddim"):
        pipeline.with_sampler("dim")


def test_a_torn_artifact_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    tiny.pipeline().save(tmp_path / "artifact")
    file = max((tmp_path / "artifact/denoiser").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=re.escape(file.name)):
        load_pipeline(tmp_path / "artifact")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_pipeline(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.pop("denoiser"),
        lambda facts: facts.pop("dtype"),
        lambda facts: facts.pop("conditions"),
        lambda facts: facts.update(denoiser="pixart"),
        lambda facts: facts["denoiser"].update(model="../os"),
        lambda facts: facts["denoiser"]["config"].update(depth="many"),
        lambda facts: facts["guidance"].update(channel=3),
        lambda facts: facts["sampler"].update(options={"grid": "integer", "eta": 1}),
        lambda facts: facts["sampler"].update(steps="few"),
        lambda facts: facts["tokenizer"].update(file="../../etc/passwd"),
        lambda facts: facts["tokenizer"].update(max_length=0),
    ],
)
def test_facts_that_describe_no_pipeline_are_refused_though_their_hash_is_right(
    change: Callable[[dict], object], tmp_path: Path
) -> None:
    file = tiny.pipeline().save(tmp_path / "artifact") / "pipeline.json"
    facts = json.loads(file.read_text())
    del facts["sha256"]
    change(facts)
    file.write_text(json.dumps({**facts, "sha256": digest(facts)}))
    with pytest.raises(
        ArtifactError, match=r"pipeline\.json (does not describe a pipeline|names no denoiser)"
    ):
        load_pipeline(tmp_path / "artifact")


def test_a_negative_prompt_without_an_effect_is_refused() -> None:
    pipeline = tiny.pipeline()
    guidance = {"scale": 3.0, "null": "table", "mask": "prompt"}
    table = dataclasses.replace(pipeline, facts={**pipeline.facts, "guidance": guidance})
    with pytest.raises(ValueError, match="'dark' would have no effect: this model has learned"):
        table(PROMPTS, negative="dark")
    with pytest.raises(ValueError, match="'dark' would have no effect: a guidance scale of 1"):
        pipeline(PROMPTS, negative="dark", guidance=1.0)


def test_a_token_that_the_text_encoder_does_not_know_is_refused() -> None:
    pipeline = tiny.pipeline()
    part = pipeline.facts["text_encoder"]
    smaller = {**part, "config": {**part["config"], "vocab_size": 3}}
    with pytest.raises(ValueError, match="but the text encoder knows 3 tokens"):
        dataclasses.replace(pipeline, facts={**pipeline.facts, "text_encoder": smaller}).encoder.encode_text(
            PROMPTS
        )


def test_the_own_sampler_by_name_keeps_its_options() -> None:
    """ "integer" and "continuous" are not the same sampler."""
    pipeline = tiny.pipeline()
    assert pipeline.with_sampler("dpm_solver").sampler == pipeline.sampler


def test_pictures_of_another_size_than_the_training_size_can_be_made() -> None:
    assert tiny.pipeline()(PROMPTS[:1], size=(24, 12)).shape == (1, 24, 12, 3)


def test_a_pipeline_is_a_value() -> None:
    pipeline: Pipeline = tiny.pipeline()
    before = pipeline.denoiser.nbytes()
    pipeline.quantized(load_recipe("w8a8-dynamic"))
    assert pipeline.denoiser.nbytes() == before


@pytest.mark.parametrize("format", ["original", "original-split", "diffusers"])
def test_size_conditions_are_those_of_the_code_that_the_checkpoint_is_from(format: str) -> None:
    """The original code passes the label of the nearest bin, also with split query, key and value."""
    pipeline = tiny.pipeline()
    source = {"denoiser": {"format": format, "file": "tiny.pth"}}
    config = {**pipeline.facts["denoiser"]["config"], "micro_conditions": True}
    denoiser = {**pipeline.facts["denoiser"], "config": config}
    told = dataclasses.replace(pipeline, facts={**pipeline.facts, "source": source, "denoiser": denoiser})
    aspect = float(told.encoder.sizes(1, (768, 1344))["size"].aspect[0])
    assert aspect == pytest.approx(768 / 1344 if format == "diffusers" else 0.57)


def test_latents_that_are_not_finite_are_refused_and_not_drawn_black() -> None:
    latents = jnp.zeros((3, 8, 8, 4)).at[1, 0, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"samples \[1\] of 3 are not finite"):
        tiny.pipeline().decode(latents)
