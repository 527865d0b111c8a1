"""DiT checkpoints: the original .pt files, those with split query, key and value, and diffusers folders."""

import math
from collections.abc import Mapping
from typing import Any

from converters.configs import Shapes, columns, numbers, ratio, resolve, rows
from converters.rules import Rule, Table, copies, fused, patch, same
from viditq_jax.models.dit import CONFIGS, Config

TITLE = "DiT"
PART = "denoiser"
# The files as they are published; a name tells what the tensors cannot.
PUBLISHED = {"DiT-XL-2-256x256": "dit-xl-2-256", "DiT-XL-2-512x512": "dit-xl-2-512"}
PIPELINES: dict[str, dict[str, Any]] = {"DiTPipeline": {}}
_HEADS = {config.width: config.heads for config in CONFIGS.values()}


def _original(config: Config) -> Table:
    rules = (
        Rule("x_embedder.proj.weight", ("x_embedder.proj.weight",), patch(config.patch_size)),
        same("{name}"),
    )
    return Table(rules, drop=("*pos_embed",))


def _split(config: Config) -> Table:
    sources = ("blocks.{i}.attn.q.{leaf}", "blocks.{i}.attn.k.{leaf}", "blocks.{i}.attn.v.{leaf}")
    table = _original(config)
    return Table((Rule("blocks.{i}.attn.qkv.{leaf}", sources, fused(3)), *table.rules), table.drop)


def _diffusers(config: Config) -> Table:
    def replicated(target: str, name: str) -> Rule:
        """Every block of the diffusers model holds its own copy of the embedders."""
        sources = tuple(f"transformer_blocks.{k}.norm1.emb.{name}" for k in range(config.depth))
        return Rule(target, sources, copies(config.depth))

    block, theirs = "blocks.{i}", "transformer_blocks.{i}"
    heads = tuple(f"{theirs}.attn1.to_{part}.{{leaf}}" for part in "qkv")
    rules = (
        Rule("x_embedder.proj.weight", ("pos_embed.proj.weight",), patch(config.patch_size)),
        same("x_embedder.proj.bias", "pos_embed.proj.bias"),
        replicated("t_embedder.mlp.0.{leaf}", "timestep_embedder.linear_1.{leaf}"),
        replicated("t_embedder.mlp.2.{leaf}", "timestep_embedder.linear_2.{leaf}"),
        replicated("y_embedder.embedding_table.weight", "class_embedder.embedding_table.weight"),
        same(f"{block}.adaLN_modulation.1.{{leaf}}", f"{theirs}.norm1.linear.{{leaf}}"),
        Rule(f"{block}.attn.qkv.{{leaf}}", heads, fused(3)),
        same(f"{block}.attn.proj.{{leaf}}", f"{theirs}.attn1.to_out.0.{{leaf}}"),
        same(f"{block}.mlp.fc1.{{leaf}}", f"{theirs}.ff.net.0.proj.{{leaf}}"),
        same(f"{block}.mlp.fc2.{{leaf}}", f"{theirs}.ff.net.2.{{leaf}}"),
        same("final_layer.adaLN_modulation.1.{leaf}", "proj_out_1.{leaf}"),
        same("final_layer.linear.{leaf}", "proj_out_2.{leaf}"),
    )
    return Table(rules, drop=("pos_embed.pos_embed",))


FORMATS = {"original": _original, "original-split": _split, "diffusers": _diffusers}


def detect(shapes: Shapes) -> str | None:
    """The format of a DiT checkpoint, or None if it is none."""
    if "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight" in shapes:
        return "diffusers"
    own = {"y_embedder.embedding_table.weight", "final_layer.adaLN_modulation.1.weight"}
    if not own <= shapes.keys() or "temp_embed" in shapes:
        return None
    return "original-split" if "blocks.0.attn.q.weight" in shapes else "original"


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    if format == "diffusers":
        prefix, block = "transformer_blocks.", "transformer_blocks.0."
        embed, labels = "pos_embed.proj.weight", f"{block}norm1.emb.class_embedder.embedding_table.weight"
        hidden, out = f"{block}ff.net.0.proj.weight", "proj_out_2.weight"
        published = {"freq_shift": 1.0, "mlp_norm_eps": 1e-5}
        named = named.diffusers() if named else None
    else:
        prefix, block = "blocks.", "blocks.0."
        embed, labels = "x_embedder.proj.weight", "y_embedder.embedding_table.weight"
        hidden, out = f"{block}mlp.fc1.weight", "final_layer.linear.weight"
        published = {}
    width, side = rows(shapes, embed), shapes.get(embed, (1,))[-1]
    inferred = {
        "width": width,
        "depth": len(numbers(shapes, f"{prefix}{{i}}.")),
        "patch_size": side,
        "in_channels": columns(shapes, embed),
        "out_channels": rows(shapes, out) // side**2,
        "mlp_ratio": ratio(rows(shapes, hidden), width),
        "classes": rows(shapes, labels) - 1,
    }
    if width in _HEADS:
        published["heads"] = _HEADS[width]
    tokens = columns(shapes, "pos_embed")
    if tokens and math.isqrt(tokens) ** 2 == tokens:
        published["input_size"] = math.isqrt(tokens) * side
    heads = (config or {}).get("num_attention_heads")
    return resolve(
        Config,
        inferred,
        config,
        named,
        renamed={
            "num_attention_heads": "heads",
            "num_layers": "depth",
            "sample_size": "input_size",
            "num_embeds_ada_norm": "classes",
            "norm_eps": "mlp_norm_eps",
        },
        supported={
            "activation_fn": ("gelu-approximate",),
            "attention_bias": (True,),
            "norm_type": ("ada_norm_zero",),
            "norm_elementwise_affine": (False,),
            **({"attention_head_dim": (width // heads,)} if isinstance(heads, int) and heads else {}),
        },
        published=published,
        required=("input_size",),
        hint="pass its config.json as config (--config), or model (--model), such as 'dit-xl-2-256'",
    )


def defaults(config: Config, format: str) -> dict[str, Any]:
    """How the authors sample: ancestral, 250 steps, 3 channels guided; diffusers: DDIM, 50 steps, all."""
    if format == "diffusers":
        sampler: dict[str, Any] = {"name": "ddim", "options": {"spacing": "leading"}, "steps": 50}
    else:
        variance = "learned_range" if config.out_channels == 2 * config.in_channels else "fixed_large"
        sampler = {"name": "iddpm", "options": {"spacing": "K", "variance": variance}, "steps": 250}
    channels = None if format == "diffusers" else min(3, config.in_channels)
    return {
        "sampler": sampler,
        "guidance": {
            "scale": 4.0,
            "channels": channels,
            "null": "table",
            "mask": "own",
            "order": "cond_first",
        },
        "conditions": {"kind": "label", "classes": config.classes, "id2label": None},
    }


def latent_scale(config: Config) -> float:
    """The scaling factor of the autoencoder that the published models were trained with."""
    return 0.18215
