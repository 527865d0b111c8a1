"""Whole pipelines: folders of diffusers, single files and the parts beside them, and what is refused."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from converters import ConversionError, SourceError, convert, export, save_safetensors
from tests import diffusers_pipelines, tiny
from viditq_jax.checkpoint import save
from viditq_jax.load import load_pipeline
from viditq_jax.models import autoencoder_kl, dit, stdit, t5
from viditq_jax.net import Net, abstract

DIT = dit.Config(width=48, depth=2, heads=4, input_size=8, classes=7)
SIZES = {"heads": 4, "input_size": 8}
PIXART_TOLD = {"heads": 2, "sample_size": 8, "interpolation_scale": 1.0, "text_length": 12}


@pytest.fixture(scope="module")
def net() -> Net:
    return tiny.randomized(abstract(dit.build, DIT), 5)


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PixArt-Sigma pipeline as diffusers saves it."""
    folder = tmp_path_factory.mktemp("pipelines") / "sigma"
    diffusers_pipelines.pixart_sigma(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of our tiny pipeline in their original formats, one file each."""
    folder, pipeline = tmp_path_factory.mktemp("parts"), tiny.pipeline()
    save_safetensors(folder / "pixart.safetensors", export(pipeline.denoiser, "pixart", tiny.PIXART))
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text('{"norm_num_groups": 4, "scaling_factor": 0.5}')
    vae = export(pipeline.decoder, "autoencoder_kl", tiny.VAE, "ldm")
    save_safetensors(folder / "vae" / "vae.safetensors", vae)
    save_safetensors(folder / "t5.safetensors", export(pipeline.text_encoder, "t5", tiny.T5, "transformers"))
    (folder / "spiece.model").write_bytes(tiny.spiece_model())
    return folder


def assert_equal(ours: Net, theirs: Net) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def save_torch(path: Path, net: Net, wrap: Callable[[dict[str, Any]], Any] = lambda state: state) -> Path:
    state = {name: torch.from_numpy(np.array(array)) for name, array in export(net, "dit", DIT).items()}
    torch.save(wrap(state), path)
    return path


def test_a_folder_of_diffusers_gives_every_part(sigma: Path) -> None:
    artifact = convert(sigma)
    facts = artifact.facts
    assert list(artifact.nets) == ["denoiser", "decoder", "text_encoder"]
    assert {name: facts[name]["model"] for name in artifact.nets} == {
        "denoiser": "pixart", "decoder": "autoencoder_kl", "text_encoder": "t5",
    }  # fmt: skip
    assert facts["sampler"]["name"] == "dpm_solver"
    assert facts["sampler"]["options"]["grid"] == "integer"
    assert facts["guidance"] == {
        "scale": 4.5, "channels": None, "null": "encoded", "mask": "own", "order": "uncond_first",
    }  # fmt: skip
    assert facts["conditions"] == {"kind": "prompt", "clean_caption": True}
    assert facts["tokenizer"]["max_length"] == 300
    assert facts["tokenizer"]["file"] in artifact.files
    assert facts["image_size"] == [32, 32]
    assert facts["decoder"]["config"]["scaling_factor"] == 0.13025
    assert facts["source"]["text_encoder"] == {"format": "transformers", "file": "model.safetensors"}
    json.dumps(facts)
    for load in artifact.nets.values():
        assert {leaf.dtype for leaf in jax.tree.leaves(load().params)} == {jnp.dtype(jnp.bfloat16)}


def test_a_label_pipeline_knows_its_labels(tmp_path: Path) -> None:
    diffusers_pipelines.dit(folder := tmp_path / "dit")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": {"0": "tench"}}))
    facts = convert(folder).facts
    assert facts["conditions"] == {"kind": "label", "classes": 1000, "id2label": {"0": "tench"}}
    assert (facts["sampler"]["name"], facts["sampler"]["steps"]) == ("ddim", 50)
    assert facts["guidance"]["channels"] is None
    assert facts["denoiser"]["config"]["freq_shift"] == 1.0
    original = convert(folder, config={"freq_shift": 0.0, "mlp_norm_eps": 1e-6}).facts["denoiser"]["config"]
    assert (original["freq_shift"], original["mlp_norm_eps"]) == (0.0, 1e-6)


def test_single_files_make_a_pipeline(parts: Path) -> None:
    artifact = convert(
        parts / "pixart.safetensors", dtype=jnp.float32, config=PIXART_TOLD, vae=parts / "vae",
        text_encoder=parts / "t5.safetensors", tokenizer=parts / "spiece.model",
    )  # fmt: skip
    facts = artifact.facts
    assert facts["source"]["decoder"] == {"format": "ldm", "file": "vae.safetensors"}
    assert facts["sampler"] == {"name": "dpm_solver", "options": {"grid": "continuous"}, "steps": 20}
    assert facts["guidance"]["mask"] == "prompt"
    assert artifact.files.keys() == {"tokenizer/spiece.model"}
    pipeline = tiny.pipeline()
    for name, theirs in pipeline.nets().items():
        assert_equal(artifact.nets[name](), theirs)


def test_an_autoencoder_without_a_config_has_the_scale_of_the_published_one(
    parts: Path, net: Net, tmp_path: Path
) -> None:
    """DiT and PixArt-alpha were trained with the autoencoder of SD, PixArt-Sigma with that of SDXL."""
    config = autoencoder_kl.Config(block_out_channels=(32,), layers_per_block=1)
    vae = export(tiny.randomized(abstract(autoencoder_kl.build, config), 4), "autoencoder_kl", config, "ldm")
    path = save_safetensors(tmp_path / "vae.safetensors", vae)
    sigma = convert(parts / "pixart.safetensors", config=PIXART_TOLD, vae=path)
    label = convert(save_torch(tmp_path / "x.pt", net), config=SIZES, vae=path)
    assert sigma.facts["decoder"]["config"]["scaling_factor"] == 0.13025
    assert label.facts["decoder"]["config"]["scaling_factor"] == 0.18215
    with pytest.raises(
        ConversionError, match=r"vae\.safetensors \(AutoencoderKL, ldm format\): 8 channels do not"
    ):
        convert(tmp_path / "x.pt", config=SIZES, vae=parts / "vae" / "vae.safetensors")


def test_a_video_model_converts_with_its_frames_and_asks_for_a_text_encoder(tmp_path: Path) -> None:
    told = {"heads": 4, "input_size": 8, "frames": 3, "space_scale": 0.5, "time_scale": 1.0}
    config = stdit.Config(**told, depth=1, width=16, text_length=5, caption_channels=8)
    net = tiny.randomized(abstract(stdit.build, config), 5)
    path = save_safetensors(tmp_path / "x.safetensors", export(net, "stdit", config))
    artifact = convert(path, config=told, dtype=jnp.float32)
    assert (artifact.facts["frames"], artifact.facts["image_size"]) == (3, [64, 64])
    assert_equal(artifact.nets["denoiser"](), net)
    save(artifact, tmp_path / "video")
    with pytest.raises(ValueError, match="has no text encoder"):
        load_pipeline(tmp_path / "video").latents(["a red apple"])


def test_a_bare_denoiser_converts_and_samples_as_its_authors_do(net: Net, tmp_path: Path) -> None:
    artifact = convert(save_torch(tmp_path / "x.pt", net), dtype=jnp.float32, config=SIZES)
    assert list(artifact.nets) == ["denoiser"]
    assert "decoder" not in artifact.facts
    assert artifact.facts["sampler"] == {
        "name": "iddpm", "options": {"spacing": "K", "variance": "learned_range"}, "steps": 250,
    }  # fmt: skip
    assert artifact.facts["guidance"]["channels"] == 3
    assert artifact.facts["image_size"] == [64, 64]
    assert_equal(artifact.nets["denoiser"](), net)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": {}, "ema": state, "opt": {"lr": 1}, "args": None},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}},
        lambda state: {**state, "pos_embed": torch.zeros(1, 16, 48)},
        lambda state: {name: t.t().contiguous().t() if t.ndim == 2 else t for name, t in state.items()},
    ],
    ids=["ema", "data-parallel", "compiled", "position table", "strided"],
)  # fmt: skip
def test_however_it_is_wrapped_the_model_is_the_same(net: Net, tmp_path: Path, wrap: Any) -> None:
    path = save_torch(tmp_path / "x.pt", net, wrap)
    assert_equal(convert(path, dtype=jnp.float32, config=SIZES).nets["denoiser"](), net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_give_float32_models_without_a_change(
    net: Net, tmp_path: Path, dtype: torch.dtype
) -> None:
    path = save_torch(tmp_path / "x.pt", net, lambda state: {name: t.to(dtype) for name, t in state.items()})
    found = convert(path, dtype=jnp.float32, config=SIZES).nets["denoiser"]()
    half = jnp.float16 if dtype == torch.float16 else jnp.bfloat16
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_array_equal(ours, theirs.astype(half).astype(jnp.float32)),
        found.params, net.params,
    )  # fmt: skip


def test_a_published_file_name_tells_what_the_tensors_do_not(net: Net, tmp_path: Path) -> None:
    """The name says that the model is DiT-XL/2, which this one is not."""
    path = save_torch(tmp_path / "DiT-XL-2-512x512.pt", net)
    with pytest.raises(ConversionError, match="width is 48 in the checkpoint, but 1152 in the named model"):
        convert(path)
    with pytest.raises(ConversionError, match=r"does not tell heads, input_size; .*such as 'dit-xl-2-256'"):
        convert(path.rename(tmp_path / "mine.pt"))


def test_a_model_of_another_name_is_refused(net: Net, tmp_path: Path) -> None:
    path = save_torch(tmp_path / "x.pt", net)
    with pytest.raises(ConversionError, match="no model 'dit-xl-2-255'; did you mean dit-xl-2-256"):
        convert(path, model="dit-xl-2-255")
    with pytest.raises(ConversionError, match=r"DiT, original format.*no model 'pixart-sigma-xl-2-256'"):
        convert(path, model="pixart-sigma-xl-2-256")


def test_all_faults_of_a_file_are_told_before_anything_is_read(net: Net, tmp_path: Path) -> None:
    def spoil(state: dict[str, Any]) -> dict[str, Any]:
        state["blocks.0.attn.kqv.weight"] = state.pop("blocks.0.attn.qkv.weight")
        state["blocks.1.mlp.fc2.bias"] = torch.zeros(5)
        return state

    path = save_torch(tmp_path / "x.pt", net, spoil)
    with pytest.raises(ConversionError) as caught:
        convert(path, config=SIZES)
    for part in (
        "x.pt (DiT, original format)", "3 faults",
        "missing: blocks.0.attn.qkv.weight, nearest: blocks.0.attn.kqv.weight",
        "unexpected: blocks.0.attn.kqv.weight", "blocks.1.mlp.fc2.bias is [5], expected [48]",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_parts_that_do_not_belong_together_are_refused(parts: Path, net: Net, tmp_path: Path) -> None:
    label = save_torch(tmp_path / "x.pt", net)
    pixart = parts / "pixart.safetensors"

    def refused(match: str, source: Path = pixart, **kwargs: Any) -> None:
        told = PIXART_TOLD if source == pixart else SIZES
        with pytest.raises(ConversionError, match=match):
            convert(source, config=told, **kwargs)

    refused("takes class labels; leave text_encoder", label, text_encoder=parts / "t5.safetensors")
    refused("needs its text encoder", tokenizer=parts / "spiece.model")
    refused("is not a tokenizer file", text_encoder=parts / "t5.safetensors")
    (tmp_path / "empty").mkdir()
    refused(r"has no spiece\.model or tokenizer\.json", text_encoder=pixart, tokenizer=tmp_path / "empty")
    refused("looks like DiT; give it as the denoiser", vae=label)
    refused("dtype float16 is not possible", dtype=jnp.float16)
    other = tiny.randomized(abstract(t5.build, config := dataclasses.replace(tiny.T5, d_model=24)), 6)
    save_safetensors(tmp_path / "t5.safetensors", export(other, "t5", config, "transformers"))
    refused(
        "makes text features of 24 channels, but the denoiser takes 16",
        text_encoder=tmp_path / "t5.safetensors", tokenizer=parts / "spiece.model",
    )  # fmt: skip


def test_captions_are_no_longer_than_the_tokenizer_allows(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(tiny.spiece_model())

    def length(limit: int) -> int:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": limit}))
        given = {"text_encoder": parts / "t5.safetensors", "tokenizer": tmp_path}
        artifact = convert(parts / "pixart.safetensors", config=PIXART_TOLD, **given)
        return artifact.facts["tokenizer"]["max_length"]

    assert (length(7), length(512)) == (7, 12)


def test_the_config_beside_the_weights_wins_over_the_class_of_the_pipeline(
    sigma: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(sigma, tmp_path / "sigma")
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "text_length": 24}))
    assert convert(sigma).facts["denoiser"]["config"]["text_length"] == 300
    assert convert(folder).facts["denoiser"]["config"]["text_length"] == 24


@pytest.mark.parametrize(
    "told",
    [{"heads": -2}, {"heads": 0}, {"input_size": -8}, {"pe_interpolation": float("nan")}, {"heads": [2]}],
    ids=str,
)
def test_an_impossible_number_in_a_config_is_refused(parts: Path, told: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match=r"should be (greater than zero|of type int)"):
        convert(parts / "pixart.safetensors", config={**PIXART_TOLD, **told})


def test_a_size_that_is_no_number_is_refused(parts: Path) -> None:
    told = {"_class_name": "PixArtTransformer2DModel", "sample_size": "8", "num_attention_heads": 2}
    with pytest.raises(ConversionError, match=r"pixart\.safetensors \(PixArt, original format\): .*'str'"):
        convert(parts / "pixart.safetensors", config=told)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.pt does not exist"):
        convert(tmp_path / "nothing.pt")


def test_another_scheduler_replaces_the_sampler(net: Net, tmp_path: Path) -> None:
    path = save_torch(tmp_path / "x.pt", net)
    scheduler = {"_class_name": "DPMSolverMultistepScheduler"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler))
    for given in (scheduler, tmp_path, tmp_path / "scheduler_config.json"):
        sampler = convert(path, config=SIZES, scheduler=given).facts["sampler"]
        assert (sampler["name"], sampler["steps"], sampler["options"]["spacing"]) == (
            "dpm_solver",
            20,
            "linspace",
        )
