"""PixArt checkpoints: original .pth files, those with split query, key and value, and diffusers folders."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from converters.configs import Shapes, columns, numbers, ratio, resolve, rows
from converters.rules import CONV, LEFT_OUT, Rule, Table, fused, patch, same
from viditq_jax.models.pixart import Config

TITLE = "PixArt"
PART = "denoiser"
# The files as they are published; a name tells what the tensors cannot.
PUBLISHED = {
    "PixArt-XL-2-256x256": "pixart-alpha-xl-2-256",
    "PixArt-XL-2-SAM-256x256": "pixart-alpha-xl-2-256",
    "PixArt-XL-2-512x512": "pixart-alpha-xl-2-512",
    "PixArt-XL-2-1024-MS": "pixart-alpha-xl-2-1024-ms",
    "PixArt-Sigma-XL-2-256x256": "pixart-sigma-xl-2-256",
    "PixArt-Sigma-XL-2-512-MS": "pixart-sigma-xl-2-512-ms",
    "PixArt-Sigma-XL-2-1024-MS": "pixart-sigma-xl-2-1024-ms",
    "PixArt-Sigma-XL-2-2K-MS": "pixart-sigma-xl-2-2k-ms",
}
ALPHA_LENGTH, SIGMA_LENGTH = 120, 300  # tokens of a caption
# Pipelines of diffusers, whose transformer does not say how long captions are.
PIPELINES = {
    "PixArtAlphaPipeline": {"text_length": ALPHA_LENGTH},
    "PixArtSigmaPipeline": {"text_length": SIGMA_LENGTH},
}
_WIDTH, _HEADS = 1152, 16  # of every published model


def _original(config: Config) -> Table:
    rules = (
        Rule("x_embedder.proj.weight", ("x_embedder.proj.weight",), patch(config.patch_size)),
        Rule("blocks.{i}.attn.sr.kernel", ("blocks.{i}.attn.sr.weight",), CONV),
        same("{name}"),
    )
    return Table(rules, drop=("*pos_embed",))


def _split(config: Config) -> Table:
    sources = ("blocks.{i}.attn.q.{leaf}", "blocks.{i}.attn.k.{leaf}", "blocks.{i}.attn.v.{leaf}")
    table = _original(config)
    return Table((Rule("blocks.{i}.attn.qkv.{leaf}", sources, fused(3)), *table.rules), table.drop)


def _diffusers(config: Config) -> Table:
    block, theirs, emb = "blocks.{i}", "transformer_blocks.{i}", "adaln_single.emb"

    def attention(index: int, parts: str) -> tuple[str, ...]:
        return tuple(f"{theirs}.attn{index}.to_{part}.{{leaf}}" for part in parts)

    def embedder(target: str, name: str) -> tuple[Rule, Rule]:
        return (
            same(f"{target}.mlp.0.{{leaf}}", f"{emb}.{name}.linear_1.{{leaf}}"),
            same(f"{target}.mlp.2.{{leaf}}", f"{emb}.{name}.linear_2.{{leaf}}"),
        )

    rules = (
        Rule("x_embedder.proj.weight", ("pos_embed.proj.weight",), patch(config.patch_size)),
        same("x_embedder.proj.bias", "pos_embed.proj.bias"),
        *embedder("t_embedder", "timestep_embedder"),
        *embedder("csize_embedder", "resolution_embedder"),
        *embedder("ar_embedder", "aspect_ratio_embedder"),
        same("t_block.1.{leaf}", "adaln_single.linear.{leaf}"),
        same("y_embedder.y_proj.fc1.{leaf}", "caption_projection.linear_1.{leaf}"),
        same("y_embedder.y_proj.fc2.{leaf}", "caption_projection.linear_2.{leaf}"),
        same(f"{block}.scale_shift_table", f"{theirs}.scale_shift_table"),
        Rule(f"{block}.attn.qkv.{{leaf}}", attention(1, "qkv"), fused(3)),
        same(f"{block}.attn.proj.{{leaf}}", f"{theirs}.attn1.to_out.0.{{leaf}}"),
        same(f"{block}.cross_attn.q_linear.{{leaf}}", f"{theirs}.attn2.to_q.{{leaf}}"),
        Rule(f"{block}.cross_attn.kv_linear.{{leaf}}", attention(2, "kv"), fused(2)),
        same(f"{block}.cross_attn.proj.{{leaf}}", f"{theirs}.attn2.to_out.0.{{leaf}}"),
        same(f"{block}.mlp.fc1.{{leaf}}", f"{theirs}.ff.net.0.proj.{{leaf}}"),
        same(f"{block}.mlp.fc2.{{leaf}}", f"{theirs}.ff.net.2.{{leaf}}"),
        same("final_layer.linear.{leaf}", "proj_out.{leaf}"),
        same("final_layer.scale_shift_table", "scale_shift_table"),
        Rule("y_embedder.y_embedding", (), LEFT_OUT),
    )
    return Table(rules, drop=("pos_embed.pos_embed",))


FORMATS = {"original": _original, "original-split": _split, "diffusers": _diffusers}


def detect(shapes: Shapes) -> str | None:
    """The format of a PixArt checkpoint, or None if it is none."""
    if "adaln_single.linear.weight" in shapes:
        video = any(name.startswith("temporal_transformer_blocks.") for name in shapes)
        return None if video or "caption_projection.linear_1.weight" not in shapes else "diffusers"
    own = {"blocks.0.scale_shift_table", "y_embedder.y_proj.fc1.weight", "x_embedder.proj.weight"}
    if not own <= shapes.keys() or len(shapes["x_embedder.proj.weight"]) != 4:
        return None
    return "original-split" if "blocks.0.attn.q.weight" in shapes else "original"


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    config = dict(config or {})
    if format == "diffusers":
        prefix, embed, caption = (
            "transformer_blocks.",
            "pos_embed.proj.weight",
            "caption_projection.linear_1.weight",
        )
        hidden, out = f"{prefix}0.ff.net.0.proj.weight", "proj_out.weight"
        micro = "adaln_single.emb.resolution_embedder.linear_1.weight" in shapes
    else:
        prefix, embed, caption = "blocks.", "x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight"
        hidden, out = f"{prefix}0.mlp.fc1.weight", "final_layer.linear.weight"
        micro = "csize_embedder.mlp.0.weight" in shapes
    width, side = rows(shapes, embed), shapes.get(embed, (1,))[-1]
    compressed = numbers([name for name in shapes if name.endswith(".attn.sr.weight")], f"{prefix}{{i}}.")
    nulls = shapes.get("y_embedder.y_embedding")
    inferred = {
        "width": width,
        "depth": len(numbers(shapes, f"{prefix}{{i}}.")),
        "patch_size": side,
        "in_channels": columns(shapes, embed),
        "out_channels": rows(shapes, out) // side**2,
        "mlp_ratio": ratio(rows(shapes, hidden), width),
        "caption_channels": columns(shapes, caption),
        "micro_conditions": micro,
        "kv_compress": compressed,
        "qk_norm": f"{prefix}0.attn.q_norm.weight" in shapes,
        "with_null_caption": nulls is not None,
        **({"text_length": nulls[0]} if nulls else {}),
        **({"kv_factor": shapes[f"{prefix}{compressed[0]}.attn.sr.weight"][-1]} if compressed else {}),
    }
    published: dict[str, Any] = {"heads": _HEADS} if width == _WIDTH else {}
    tokens = columns(shapes, "pos_embed")
    if tokens and math.isqrt(tokens) ** 2 == tokens:
        published["input_size"] = math.isqrt(tokens) * side
    from_diffusers = format == "diffusers" or "_class_name" in config
    if from_diffusers and config.get("sample_size") and config.get("interpolation_scale") is None:
        published["pe_interpolation"] = float(
            max(config["sample_size"] // 64, 1)
        )  # what diffusers makes of null
    heads = config.get("num_attention_heads")
    return resolve(
        Config,
        inferred,
        config,
        named and dataclasses.replace(named, with_null_caption=nulls is not None),  # some files lack it
        renamed={
            "num_attention_heads": "heads",
            "num_layers": "depth",
            "sample_size": "input_size",
            "interpolation_scale": "pe_interpolation",
            "use_additional_conditions": "micro_conditions",
        },
        supported={
            "activation_fn": ("gelu-approximate",),
            "attention_bias": (True,),
            "norm_type": ("ada_norm_single",),
            "norm_elementwise_affine": (False,),
            "norm_eps": (1e-6,),
            **({"attention_head_dim": (width // heads,)} if isinstance(heads, int) and heads else {}),
        },
        published=published,
        required=(
            "heads",
            "pe_interpolation",
            "text_length",
        ),  # they have defaults, but none that fits all models
        hint="pass its config.json as config (--config), or model (--model), such as"
        " 'pixart-sigma-xl-2-1024-ms'",
    )


def defaults(config: Config, format: str) -> dict[str, Any]:
    """How the authors sample. Alpha cleans captions, and has learned a caption that stands for no text."""
    alpha = config.text_length == ALPHA_LENGTH
    if format == "diffusers":
        grid, null, mask, clean = "integer", "encoded", "own", True
    else:
        grid, mask, clean = "continuous", "prompt", alpha
        null = "table" if alpha and config.with_null_caption else "encoded"
    return {
        "sampler": {"name": "dpm_solver", "options": {"grid": grid}, "steps": 20},
        "guidance": {"scale": 4.5, "channels": None, "null": null, "mask": mask, "order": "uncond_first"},
        "conditions": {"kind": "prompt", "clean_caption": clean},
    }


def latent_scale(config: Config) -> float:
    """The scaling factor of the published models' autoencoder: that of SD for alpha, else that of SDXL."""
    return 0.18215 if config.text_length == ALPHA_LENGTH else 0.13025
