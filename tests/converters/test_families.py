"""Every family in every format: the round trip is exact, and a Config is read from what a file shows."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, LatteTransformer3DModel, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from converters import ConversionError, export, families, rules, save_safetensors
from converters.sources import Source, open_source
from converters.tensor import Tensor
from tests.torch_params import randomize
from viditq_jax import plugins
from viditq_jax.models import autoencoder_kl, dit, latte, latte_t2v, pixart, stdit, stdit3, t5
from viditq_jax.net import Net, abstract

DIT = dit.Config(width=48, depth=3, heads=4, input_size=8, classes=7)
PIXART = pixart.Config(
    input_size=16, pe_interpolation=2.0, text_length=9, depth=3, width=48, heads=4, caption_channels=24
)
STDIT = stdit.Config(
    frames=5, input_size=16, space_scale=0.5, time_scale=2.0, text_length=9, depth=3, width=48, heads=4,
    caption_channels=24,
)  # fmt: skip
LATTE = latte.Config(classes=7, frames=5, input_size=8, depth=4, width=48, heads=4)
LATTE_T2V = latte_t2v.Config(
    frames=5, input_size=8, text_length=9, depth=3, width=48, heads=4, caption_channels=24
)
STDIT3 = stdit3.Config(
    width=48, heads=4, frames=5, input_sq_size=128, text_length=9, depth=3, caption_channels=24
)
T5 = t5.Config(num_layers=2, d_model=24, d_ff=32, num_heads=3, d_kv=8, vocab_size=50)
VAE = autoencoder_kl.Config(block_out_channels=(8, 16, 24), layers_per_block=1, norm_num_groups=4)
NO_NULL = dataclasses.replace(PIXART, with_null_caption=False)
MICRO = dataclasses.replace(NO_NULL, micro_conditions=True)
COMPRESSED = dataclasses.replace(PIXART, kv_compress=(1, 2), qk_norm=True)
NO_QUANT = dataclasses.replace(
    VAE, use_quant_conv=False, use_post_quant_conv=False, latent_channels=16, shift_factor=0.1
)

CASES = [
    ("dit", DIT, "original"),
    ("dit", dataclasses.replace(DIT, patch_size=4, mlp_ratio=2.5), "original"),
    ("dit", DIT, "original-split"),
    ("dit", DIT.diffusers(), "diffusers"),
    ("pixart", PIXART, "original"),
    ("pixart", NO_NULL, "original"),
    ("pixart", COMPRESSED, "original"),
    ("pixart", MICRO, "original-split"),
    ("pixart", MICRO, "diffusers"),
    ("pixart", NO_NULL, "diffusers"),
    ("stdit", STDIT, "original"),
    ("stdit", dataclasses.replace(STDIT, with_null_caption=False, patch_size=4), "original-split"),
    ("stdit3", STDIT3, "original"),
    ("stdit3", dataclasses.replace(STDIT3, with_null_caption=False, mlp_ratio=2.5), "original"),
    ("latte", LATTE, "original"),
    ("latte", dataclasses.replace(LATTE, classes=0, depth=2), "original"),
    ("latte_t2v", LATTE_T2V, "diffusers"),
    ("t5", T5, "transformers"),
    ("autoencoder_kl", VAE, "diffusers"),
    ("autoencoder_kl", VAE, "diffusers-2022"),
    ("autoencoder_kl", VAE, "ldm"),
    ("autoencoder_kl", NO_QUANT, "ldm"),
    ("autoencoder_kl", dataclasses.replace(VAE, mid_block_add_attention=False), "diffusers"),
]
DENOISERS = "DiT, Latte, Latte-1, PixArt, STDiT, STDiT3"
# What shapes cannot show; a config.json of the family says it.
TOLD: dict[str, Callable[[Any], dict[str, Any]]] = {
    "dit": lambda c: {"heads": c.heads, "input_size": c.input_size},
    "pixart": lambda c: {
        "num_attention_heads": c.heads,
        "sample_size": c.input_size,
        "interpolation_scale": c.pe_interpolation,
        "text_length": c.text_length,
    },
    "stdit": lambda c: {
        "num_heads": c.heads,
        "input_size": c.input_size,
        "frames": c.frames,
        "space_scale": c.space_scale,
        "time_scale": c.time_scale,
        "model_max_length": c.text_length,
    },
    "stdit3": lambda c: {
        "model_type": "STDiT3",
        "hidden_size": c.width,
        "num_heads": c.heads,
        "frames": c.frames,
        "input_sq_size": c.input_sq_size,
        "model_max_length": c.text_length,
        "qk_norm": True,
        "patch_size": [1, c.patch_size, c.patch_size],
        "input_size": [None, None, None],
    },
    "latte": lambda c: {"num_heads": c.heads},
    "latte_t2v": lambda c: {
        "num_attention_heads": c.heads,
        "sample_size": c.input_size,
        "video_length": c.frames,
        "text_length": c.text_length,
    },
    "t5": lambda c: {},
    "autoencoder_kl": lambda c: {
        "norm_num_groups": c.norm_num_groups,
        "scaling_factor": c.scaling_factor,
        "shift_factor": c.shift_factor,
    },
}


def random_net(model: str, config: Any, seed: int = 0) -> Net:
    """Every parameter random, and none equal to another."""
    rng = np.random.default_rng(seed)
    net = abstract(plugins.find("viditq_jax.models", model, "build"), config)
    return net.map_variables(
        lambda _, variable: jnp.asarray(rng.standard_normal(variable.get_value().shape), jnp.float32)
    )


def shapes_of(arrays: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in arrays.items()}


def assert_equal(ours: Net, theirs: Net) -> None:
    assert ours.graphdef == theirs.graphdef
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


@pytest.mark.parametrize(("model", "config", "format"), CASES, ids=lambda value: str(value)[:14])
def test_the_round_trip_of_a_format_is_exact(tmp_path: Path, model: str, config: Any, format: str) -> None:
    net = random_net(model, config)
    source = open_source(save_safetensors(tmp_path / "x.safetensors", export(net, model, config, format)))
    family = families.find(model)
    assert families.recognize(source, family.PART)[:2] == (model, format)
    shapes = {name: tensor.shape for name, tensor in source.tensors.items()}
    assert family.read_config(shapes, format, TOLD[model](config)) == config
    build = plugins.find("viditq_jax.models", model, "build")
    table = family.FORMATS[format](config)
    assert_equal(rules.convert(abstract(build, config), source.tensors, table, jnp.float32), net)


def dit_reference() -> DiTTransformer2DModel:
    model = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=3,
        sample_size=8, patch_size=2, num_embeds_ada_norm=7,
    )  # fmt: skip
    randomize(model)
    first, *others = model.transformer_blocks
    for block in others:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    return model


def pixart_reference() -> PixArtTransformer2DModel:
    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=12, num_layers=3, cross_attention_dim=48, sample_size=16,
        caption_channels=24, interpolation_scale=2, use_additional_conditions=True,
    )  # fmt: skip
    return randomize(model)


def latte_reference() -> LatteTransformer3DModel:
    model = LatteTransformer3DModel(
        num_attention_heads=4, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=3,
        cross_attention_dim=48, attention_bias=True, sample_size=8, patch_size=2, caption_channels=24,
        activation_fn="gelu-approximate", norm_elementwise_affine=False, norm_eps=1e-6,
        norm_type="ada_norm_single", video_length=5,
    )  # fmt: skip
    return randomize(model)


def vae_reference() -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=[8, 16, 24], down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    return randomize(model)


def t5_reference(kind: type = T5EncoderModel) -> Any:
    config = T5Config(
        vocab_size=50, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    return randomize(kind(config))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize(
    ("model", "reference", "config"),
    [
        ("dit", dit_reference, DIT.diffusers()),
        ("pixart", pixart_reference, MICRO),
        ("latte_t2v", latte_reference, LATTE_T2V),
        ("autoencoder_kl", vae_reference, VAE),
        ("t5", t5_reference, T5),
    ],
)
def test_models_that_the_libraries_save_are_read_with_their_config(
    tmp_path: Path, model: str, reference: Callable[[], Any], config: Any, safe: bool
) -> None:
    module = reference()
    module.save_pretrained(tmp_path)
    if not safe:
        for file in tmp_path.glob("*.safetensors"):
            file.unlink()
        torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    source = open_source(tmp_path)
    family = families.find(model)
    _, format, tensors = families.recognize(source, family.PART)
    told = {**(source.config or {}), **({"text_length": 9} if model in ("pixart", "latte_t2v") else {})}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert family.read_config(shapes, format, told) == config
    build = plugins.find("viditq_jax.models", model, "build")
    net = rules.convert(abstract(build, config), tensors, family.FORMATS[format](config), jnp.float32)
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    for name, array in export(net, model, config, format).items():
        np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_the_decoder_of_t5_is_left_behind_and_either_name_of_the_table_will_do(tmp_path: Path) -> None:
    state = t5_reference(T5ForConditionalGeneration).state_dict()
    nets = []
    for alias in ("shared.weight", "encoder.embed_tokens.weight"):
        kept = {name: tensor for name, tensor in state.items() if name != alias}
        torch.save(kept, tmp_path / "x.bin")
        tensors = open_source(tmp_path / "x.bin").tensors
        config = families.find("t5").read_config(shapes_of(kept), "transformers", {})
        table = families.find("t5").FORMATS["transformers"](config)
        nets.append(rules.convert(abstract(t5.build, config), tensors, table, jnp.float32))
    assert_equal(*nets)


def test_old_config_files_name_another_class() -> None:
    shapes = shapes_of(export(random_net("pixart", NO_NULL), "pixart", NO_NULL, "diffusers"))
    config = {
        "_class_name": "Transformer2DModel", "norm_type": "ada_norm_single", "num_attention_heads": 4,
        "attention_head_dim": 12, "sample_size": 128, "attention_type": "default", "num_vector_embeds": None,
        "use_linear_projection": False, "text_length": 9,
    }  # fmt: skip
    found = families.find("pixart").read_config(shapes, "diffusers", config)
    # A missing interpolation_scale is max(sample_size // 64, 1) in diffusers.
    assert found == dataclasses.replace(NO_NULL, input_size=128, pe_interpolation=2.0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"norm_type": "ada_norm"}, "norm_type='ada_norm' is not supported; supported: 'ada_norm_single'"),
        ({"num_layers": 5}, "depth is 3 in the checkpoint, but 5 in the config"),
        ({"attention_head_dim": 8}, "attention_head_dim=8 is not supported; supported: 12"),
        ({"interpolation_skale": 1.0}, "unknown key 'interpolation_skale'; nearest: .*interpolation_scale"),
        ({"num_attention_heads": "4"}, "num_attention_heads='4' should be of type int"),
        ({"interpolation_scale": None}, "the checkpoint does not tell pe_interpolation"),
        ({"num_attention_heads": None}, "the checkpoint does not tell heads; pass its config.json as config"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change: dict[str, Any], what: str) -> None:
    shapes = shapes_of(export(random_net("pixart", PIXART), "pixart", PIXART))
    with pytest.raises(ConversionError, match=what):
        families.find("pixart").read_config(shapes, "original", {**TOLD["pixart"](PIXART), **change})


def test_a_named_model_tells_what_the_checkpoint_does_not() -> None:
    named = pixart.CONFIGS["pixart-sigma-xl-2-1024-ms"]
    shapes = shapes_of(export_shapes("pixart", named))
    read = families.find("pixart").read_config
    assert read(shapes, "original", None, named) == named
    with pytest.raises(ConversionError, match="does not tell input_size, pe_interpolation"):
        read(shapes, "original")
    with pytest.raises(ConversionError, match="text_length is 300 in the checkpoint, but 120 in the named"):
        read(shapes, "original", None, pixart.CONFIGS["pixart-alpha-xl-2-512"])
    without = {name: shape for name, shape in shapes.items() if name != "y_embedder.y_embedding"}
    assert read(without, "original", None, named) == dataclasses.replace(named, with_null_caption=False)


def export_shapes(model: str, config: Any) -> dict[str, Any]:
    """The shapes of the original file of a full-size model, without its weights."""
    formats = families.find(model).FORMATS
    table = next(iter(formats.values()))(config)
    net = abstract(plugins.find("viditq_jax.models", model, "build"), config)
    found = {}
    for name, variable in net.variables():
        rule, sources = rules.choose(name, {}, table)
        value = variable.get_value()
        found.update(zip(sources, written(rule.transform, value.shape, value.dtype), strict=True))
    return found


@functools.cache  # most blocks of a model have the same shapes
def written(transform: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.eval_shape(transform.write, jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.parametrize(
    ("model", "config", "tensors"),
    [
        ("dit", dit.CONFIGS["dit-xl-2-256"], 292 - 1),  # position tables are computed here
        ("stdit", stdit.CONFIGS["stdit-xl-2-16x512x512"], 550 - 2),
        ("stdit3", stdit3.CONFIGS["stdit3-xl-2"], 973 - 1),
        ("latte", latte.CONFIGS["latte-xl-2-ucf101"], 293 - 2),
        ("latte_t2v", latte_t2v.CONFIGS["latte-1"], 967),
    ],
)
def test_the_original_files_have_as_many_tensors_as_published(model: str, config: Any, tensors: int) -> None:
    """Every two blocks add as many, so models of two and of four blocks tell."""
    two, four = (len(export_shapes(model, dataclasses.replace(config, depth=n))) for n in (2, 4))
    assert two + (config.depth - 2) * (four - two) / 2 == tensors


def test_the_autoencoder_has_as_many_tensors_as_published() -> None:
    assert len(export_shapes("autoencoder_kl", autoencoder_kl.CONFIGS["sd-vae-ft"])) == 248


def source_of(*names: str, axes: int = 2) -> Source:
    tensor = Tensor((4,) * axes, np.dtype(np.float32), Path("x"), 0)
    return Source(dict.fromkeys(names, tensor), None, Path("x.safetensors"))


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (("double_blocks.0.img_mod.lin.weight", "img_in.weight"), "FLUX.1"),
        (("double_blocks.0.img_attn_qkv.weight", "img_in.proj.weight"), "HunyuanVideo"),
        (("joint_blocks.0.x_block.attn.qkv.weight",), "Stable Diffusion 3"),
        (("blocks.0.self_attn.q.weight",), "Wan 2.1"),
        (("mixins.adaln_layer.adaLN_modulations.0.1.weight",), "CogVideoX"),
        (("model.diffusion_model.input_blocks.0.0.weight",), "a U-Net"),
        (("blocks.0.attn.qkv.lora_A.weight",), "a LoRA"),
        (("something.else",), "no model we know; its first names are something.else"),
    ],
)
def test_a_stranger_is_refused_by_the_name_of_its_family(names: tuple[str, ...], title: str) -> None:
    with pytest.raises(
        ConversionError, match=rf"not a denoiser we know \({DENOISERS}\): it looks like {title}"
    ):
        families.recognize(source_of(*names), "denoiser")


@pytest.mark.parametrize(("model", "config"), [("t5", T5), ("autoencoder_kl", VAE)])
def test_a_part_in_the_place_of_another_is_refused(tmp_path: Path, model: str, config: Any) -> None:
    format = next(iter(families.find(model).FORMATS))
    path = save_safetensors(
        tmp_path / "x.safetensors", export(random_net(model, config), model, config, format)
    )
    family = families.find(model)
    part = family.PART.replace("_", " ")
    with pytest.raises(ConversionError, match=f"it looks like {family.TITLE}; give it as the {part}"):
        families.recognize(open_source(path), "denoiser")


def test_older_and_other_text_encoders_are_told_apart() -> None:
    block = "encoder.block.{}.layer.{}.{}.weight"
    bias, gate = "SelfAttention.relative_attention_bias", "DenseReluDense.wi_0"
    with pytest.raises(ConversionError, match="looks like umT5"):
        families.recognize(
            source_of(block.format(0, 0, bias), block.format(1, 0, bias), block.format(0, 1, gate)),
            "text_encoder",
        )
    with pytest.raises(ConversionError, match=r"looks like T5 v1\.0"):
        families.recognize(
            source_of(block.format(0, 0, bias), block.format(0, 1, "DenseReluDense.wi")), "text_encoder"
        )


def test_an_export_names_the_formats_and_models_there_are() -> None:
    net = random_net("t5", T5)
    with pytest.raises(ConversionError, match="has no format 'original'; choose one of transformers"):
        export(net, "t5", T5)
    with pytest.raises(ConversionError, match="no converter for 't6'; did you mean t5"):
        export(net, "t6", T5)


def test_diffusers_has_no_place_for_compressed_keys() -> None:
    with pytest.raises(ConversionError, match="no place for the parameter blocks/0/attn/k_norm"):
        export(random_net("pixart", COMPRESSED), "pixart", COMPRESSED, "diffusers")
    left = export(random_net("pixart", PIXART), "pixart", PIXART, "diffusers")
    assert not [name for name in left if "y_embedding" in name]


def test_published_stdit3_models_get_no_decoder_of_single_frames() -> None:
    """Their latents are of a temporal autoencoder; other shapes may have been trained otherwise."""
    module = families.find("stdit3")
    for config in stdit3.CONFIGS.values():
        assert "temporal autoencoder, which is not here" in module.without_decoder(config)
    assert not module.without_decoder(dataclasses.replace(stdit3.CONFIGS["stdit3-xl-2"], depth=2))
