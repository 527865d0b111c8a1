"""Tiny pipelines of our own modules, of pictures and videos, random weights in every part."""

import dataclasses
import math
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece

from viditq_jax import plugins
from viditq_jax.models import autoencoder_kl, latte, latte_t2v, pixart, stdit, stdit3, t5
from viditq_jax.net import Net, abstract
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.stats import Stats

CORPUS = [
    "a red apple",
    "two blue dogs",
    "on a table",
    "looking at the small green pizza",
    "heart of gold",
    "cat face",
]
PIXART = pixart.Config(
    input_size=8, depth=2, width=32, heads=2, caption_channels=16, text_length=12, with_null_caption=True
)
_SMALL: Any = {"input_size": 8, "depth": 1, "width": 32, "heads": 2}
_TEXT: Any = {"caption_channels": 16, "text_length": 12}
VIDEOS: dict[str, Any] = {  # a config of each video model
    "stdit": stdit.Config(frames=5, **_SMALL, **_TEXT),
    "stdit3": stdit3.Config(frames=5, input_sq_size=64, depth=1, width=32, heads=2, **_TEXT),
    "latte": latte.Config(classes=5, frames=5, **{**_SMALL, "depth": 2}),
    "latte_t2v": latte_t2v.Config(frames=5, **_SMALL, **_TEXT),
}
VAE = autoencoder_kl.Config(
    block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
)
T5 = t5.Config(num_layers=1, d_model=16, d_ff=32, num_heads=2, d_kv=8, vocab_size=64)


def spiece_model(lines: list[str] = CORPUS, vocab_size: int = 60) -> bytes:
    """A sentencepiece model with the special ids of T5."""
    with TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=f"{folder}/spiece", vocab_size=vocab_size,
            model_type="unigram", hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            minloglevel=2,
        )  # fmt: skip
        return Path(folder, "spiece.model").read_bytes()


def randomized(net: Net, seed: int, dtype: Any = jnp.float32) -> Net:
    """The net, which may be abstract, with every value drawn anew: no zero-initialised gate hides a fault."""
    rng = np.random.default_rng(seed)

    def draw(name: str, variable: Any) -> jax.Array:
        shape = variable.get_value().shape
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            offset = 1 if "norm" in name and name.endswith("weight") else 0
            return jnp.asarray((0.1 * noise + offset).astype(dtype))
        fan_in = math.prod(shape) // (shape[-1] if name.endswith("kernel") else shape[0])
        return jnp.asarray((noise / fan_in**0.5).astype(dtype))

    return net.map_variables(draw)


@cache
def pipeline(dtype: Any = jnp.float32, depth: int = PIXART.depth) -> Pipeline:
    """The same pipeline each time; never changed in place. One block compiles faster where one tells all."""
    config = dataclasses.replace(PIXART, depth=depth)
    facts = {
        "denoiser": {"model": "pixart", "config": dataclasses.asdict(config)},
        "decoder": {"model": "autoencoder_kl", "config": dataclasses.asdict(VAE)},
        "text_encoder": {"model": "t5", "config": dataclasses.asdict(T5)},
        "tokenizer": {"file": "tokenizer/spiece.model", "max_length": 12},
        "sampler": {"name": "dpm_solver", "options": {"grid": "integer"}, "steps": 3},
        "guidance": {"scale": 3.0},
        "conditions": {"kind": "prompt", "clean_caption": True},
        "image_size": [16, 16],
        "source": {"denoiser": {"format": "original", "file": "tiny.pth"}},
        "dtype": jnp.dtype(dtype).name,
    }
    return Pipeline(
        facts=facts,
        denoiser=randomized(abstract(pixart.build, config), 1, dtype),
        decoder=randomized(abstract(autoencoder_kl.build, VAE), 2, dtype),
        text_encoder=randomized(abstract(t5.build, T5), 3, dtype),
        files={"tokenizer/spiece.model": spiece_model()},
    )


@cache
def video(model: str = "stdit", dtype: Any = jnp.float32) -> Pipeline:
    """The pipeline of a video model, with the facts that its converter writes, and 3 steps; 5 frames."""
    from converters import families

    still, config = pipeline(dtype), VIDEOS[model]
    facts = {
        **{name: still.facts[name] for name in ("decoder", "text_encoder", "tokenizer", "dtype")},
        **families.find(model).defaults(config, "original"),
        "denoiser": {"model": model, "config": dataclasses.asdict(config)},
        "source": {"denoiser": {"format": "original", "file": "tiny.pth"}},
        "image_size": [16, 16],
        "frames": 5,
    }
    facts["sampler"] = {**facts["sampler"], "steps": 3}
    build = plugins.find("viditq_jax.models", model, "build")
    return dataclasses.replace(still, facts=facts, denoiser=randomized(abstract(build, config), 4, dtype))


def quantized(pipeline: Pipeline, recipe: Recipe, stats: Stats | None = None) -> Pipeline:
    """`Pipeline.quantized` without its record of each layer, as one program: much less to compile."""
    small = _quantize(pipeline.denoiser, stats, recipe=recipe)
    return dataclasses.replace(pipeline, denoiser=small, recipe=recipe)


def assert_same(found: Pipeline, wanted: Pipeline) -> None:
    """Equal arrays in equal structures and equal plans: all that programs are given, so equal pictures."""
    assert found.plan() == wanted.plan()
    assert (found.recipe, found.guidance, found.files) == (wanted.recipe, wanted.guidance, wanted.files)
    np.testing.assert_array_equal(
        found.correction(found.plan(steps=4)), wanted.correction(wanted.plan(steps=4))
    )
    assert found.nets().keys() == wanted.nets().keys()
    for name, net in wanted.nets().items():
        assert jax.tree.structure(found.nets()[name]) == jax.tree.structure(net)
        for a, b in zip(jax.tree.leaves(found.nets()[name]), jax.tree.leaves(net), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@partial(jax.jit, static_argnames="recipe")
def _quantize(net: Net, stats: Stats | None, *, recipe: Recipe) -> Net:
    return quantize(net, recipe, stats)
