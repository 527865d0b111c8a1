"""Latte checkpoints, class-conditional and unconditional: the original .pt files."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from converters.configs import Shapes, columns, numbers, ratio, resolve, rows
from converters.rules import Rule, Table, patch, same
from viditq_jax.models.latte import Config, position_tables

TITLE = "Latte"
PART = "denoiser"
# The files as they are published; a name tells what the tensors cannot.
PUBLISHED = {
    "ucf101": "latte-xl-2-ucf101",
    **dict.fromkeys(("ffs", "skytimelapse", "taichi-hd"), "latte-xl-2-unconditional"),
}
PIPELINES: dict[str, dict[str, Any]] = {}  # diffusers has none
_WIDTH, _HEADS = 1152, 16  # of every published model


def _original(config: Config) -> Table:
    rules = (
        Rule("x_embedder.proj.weight", ("x_embedder.proj.weight",), patch(config.patch_size)),
        same("{name}"),
    )
    return Table(rules, computed=partial(position_tables, config))


FORMATS = {"original": _original}


def detect(shapes: Shapes) -> str | None:
    """The format of a Latte checkpoint, or None if it is none; without its table of times it is a DiT."""
    own = {"temp_embed", "final_layer.adaLN_modulation.1.weight", "x_embedder.proj.weight"}
    return "original" if own <= shapes.keys() and len(shapes["x_embedder.proj.weight"]) == 4 else None


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    embed = "x_embedder.proj.weight"
    width, side = rows(shapes, embed), shapes.get(embed, (1,))[-1]
    inferred = {
        "width": width,
        "depth": len(numbers(shapes, "blocks.{i}.")),
        "patch_size": side,
        "in_channels": columns(shapes, embed),
        "out_channels": rows(shapes, "final_layer.linear.weight") // side**2,
        "mlp_ratio": ratio(rows(shapes, "blocks.0.mlp.fc1.weight"), width),
        "classes": max(rows(shapes, "y_embedder.embedding_table.weight") - 1, 0),
        "frames": columns(shapes, "temp_embed"),
    }
    published: dict[str, Any] = {"heads": _HEADS} if width == _WIDTH else {}
    tokens = columns(shapes, "pos_embed")
    if tokens and math.isqrt(tokens) ** 2 == tokens:
        published["input_size"] = math.isqrt(tokens) * side
    return resolve(
        Config,
        inferred,
        config,
        named,
        renamed={"hidden_size": "width", "num_heads": "heads"},
        supported={},
        published=published,
        required=("heads", "input_size"),  # they have defaults, but none that fits all models
        hint="pass them in config (--config), or model (--model), such as 'latte-xl-2-ucf101'",
    )


def defaults(config: Config, format: str) -> dict[str, Any]:
    """How the authors sample: ancestral, 250 steps, all channels guided where there are labels.

    ViDiT-Q is measured with 20 steps of DDIM.
    """
    guidance = {"channels": None, "null": "table", "mask": "own", "order": "cond_first"}
    label = {"kind": "label", "classes": config.classes, "id2label": None}
    ancestral = {"spacing": "K", "variance": "learned_range"}
    return {
        "sampler": {"name": "iddpm", "options": ancestral, "steps": 250},
        "guidance": {"scale": 7.0 if config.classes else 1.0, **guidance},
        "samplings": {
            "iddpm": {"options": ancestral, "steps": 250},
            "ddim": {"options": {"spacing": "K"}, "steps": 20},
        },
        "conditions": label if config.classes else {"kind": "none"},
        "fps": 8,
    }


def latent_scale(config: Config) -> float:
    """The scaling factor of the autoencoder that the published models were trained with."""
    return 0.18215
