"""STDiT3 checkpoints (Open-Sora 1.2): a safetensors file with its config.json, or the weights alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from converters.configs import Shapes, columns, numbers, ratio, resolve, rows
from converters.rules import Rule, Table, patch, same
from viditq_jax.models.stdit3 import CONFIGS, Config

TITLE = "STDiT3"
PART = "denoiser"
PUBLISHED = {"OpenSora-STDiT-v3": "stdit3-xl-2"}  # the file of the folder of this name is model.safetensors
PIPELINES: dict[str, dict[str, Any]] = {}  # diffusers has none
_HEADS = {config.width: config.heads for config in CONFIGS.values()}


def _original(config: Config) -> Table:
    rules = (
        Rule("x_embedder.proj.weight", ("x_embedder.proj.weight",), patch(config.patch_size, frames=True)),
        same("blocks.{i}.spatial.{name}", "spatial_blocks.{i}.{name}"),
        same("blocks.{i}.temporal.{name}", "temporal_blocks.{i}.{name}"),
        same("{name}"),
    )
    return Table(rules, drop=("*pos_embed", "*rope.freqs"))


FORMATS = {"original": _original}


def detect(shapes: Shapes) -> str | None:
    """The format of an STDiT3 checkpoint, or None if it is none."""
    blocks = {f"{kind}_blocks.0.scale_shift_table" for kind in ("spatial", "temporal")}
    return "original" if {"fps_embedder.mlp.0.weight", *blocks} <= shapes.keys() else None


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    embed, nulls = "x_embedder.proj.weight", shapes.get("y_embedder.y_embedding")
    width, side = rows(shapes, embed), shapes.get(embed, (1,))[-1]
    config = dict(config or {})
    if config.get("patch_size") == [1, side, side]:
        config["patch_size"] = side
    inferred = {
        "width": width,
        "depth": len(numbers(shapes, "spatial_blocks.{i}.")),
        "patch_size": side,
        "in_channels": columns(shapes, embed),
        "out_channels": rows(shapes, "final_layer.linear.weight") // side**2,
        "mlp_ratio": ratio(rows(shapes, "spatial_blocks.0.mlp.fc1.weight"), width),
        "caption_channels": columns(shapes, "y_embedder.y_proj.fc1.weight"),
        "with_null_caption": nulls is not None,
        **({"text_length": nulls[0]} if nulls else {}),
    }
    return resolve(
        Config,
        inferred,
        config,
        named and dataclasses.replace(named, with_null_caption=nulls is not None),
        renamed={"hidden_size": "width", "num_heads": "heads", "model_max_length": "text_length"},
        supported={"qk_norm": (True,)},
        published={"heads": _HEADS[width]} if width in _HEADS else {},
        required=("heads", "text_length"),  # they have defaults, but none that fits all models
        hint="pass the config.json as config (--config), or model (--model), such as 'stdit3-xl-2'",
    )


def defaults(config: Config, format: str) -> dict[str, Any]:
    """How the authors sample: a rectified flow of 30 steps, all channels guided, a learned null caption.

    Its shift follows from the size and length of the video. Every prompt ends with an aesthetic score.
    """
    null = "table" if config.with_null_caption else "encoded"
    return {
        "sampler": {
            "name": "flow_euler",
            "options": {"velocity": "data_minus_noise", "shift": "video"},
            "steps": 30,
        },
        "guidance": {"scale": 7.0, "channels": None, "null": null, "mask": "prompt", "order": "cond_first"},
        "conditions": {
            "kind": "prompt",
            "clean_caption": True,
            "clip": True,
            "suffix": "aesthetic score: 6.5.",
        },
        "fps": 24,
    }


def latent_scale(config: Config) -> float:
    """The scaling factor of the spatial autoencoder, SDXL's."""
    return 0.13025


def without_decoder(config: Config) -> str:
    """Why the published models cannot have a decoder of single frames, or nothing for other models."""
    shape = {"width": config.width, "heads": config.heads, "depth": config.depth}
    for name, known in CONFIGS.items():
        if shape == {"width": known.width, "heads": known.heads, "depth": known.depth}:
            return (
                f"{name} makes latents of Open-Sora's temporal autoencoder, which is not here; leave the vae"
                " out, and decode what `Pipeline.latents` gives elsewhere"
            )
    return ""
