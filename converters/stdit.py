"""STDiT checkpoints (Open-Sora 1.0): original .pth files, and those with split query, key and value."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from converters.configs import Shapes, columns, numbers, ratio, resolve, rows
from converters.rules import Rule, Table, fused, patch, same
from viditq_jax.models.stdit import Config

TITLE = "STDiT"
PART = "denoiser"
# The files as they are published; a name tells what the tensors cannot.
PUBLISHED = {
    "OpenSora-v1-16x256x256": "stdit-xl-2-16x256x256",
    "OpenSora-v1-HQ-16x256x256": "stdit-xl-2-16x256x256",
    "OpenSora-v1-HQ-16x512x512": "stdit-xl-2-16x512x512",
}
PIPELINES: dict[str, dict[str, Any]] = {}  # diffusers has none
_WIDTH, _HEADS = 1152, 16  # of every published model


def _original(config: Config) -> Table:
    rules = (
        Rule("x_embedder.proj.weight", ("x_embedder.proj.weight",), patch(config.patch_size, frames=True)),
        same("{name}"),
    )
    return Table(rules, drop=("*pos_embed", "*pos_embed_temporal"))


def _split(config: Config) -> Table:
    def split(attention: str) -> Rule:
        sources = tuple(f"blocks.{{i}}.{attention}.{part}.{{leaf}}" for part in "qkv")
        return Rule(f"blocks.{{i}}.{attention}.qkv.{{leaf}}", sources, fused(3))

    table = _original(config)
    return Table((split("attn"), split("attn_temp"), *table.rules), table.drop)


FORMATS = {"original": _original, "original-split": _split}


def detect(shapes: Shapes) -> str | None:
    """The format of an STDiT checkpoint, or None if it is none."""
    own = {"blocks.0.scale_shift_table", "blocks.0.attn_temp.proj.weight", "x_embedder.proj.weight"}
    if not own <= shapes.keys() or len(shapes["x_embedder.proj.weight"]) != 5:
        return None
    return "original-split" if "blocks.0.attn.q.weight" in shapes else "original"


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    embed, nulls = "x_embedder.proj.weight", shapes.get("y_embedder.y_embedding")
    width, side = rows(shapes, embed), shapes.get(embed, (1,))[-1]
    inferred = {
        "width": width,
        "depth": len(numbers(shapes, "blocks.{i}.")),
        "patch_size": side,
        "in_channels": columns(shapes, embed),
        "out_channels": rows(shapes, "final_layer.linear.weight") // side**2,
        "mlp_ratio": ratio(rows(shapes, "blocks.0.mlp.fc1.weight"), width),
        "caption_channels": columns(shapes, "y_embedder.y_proj.fc1.weight"),
        "with_null_caption": nulls is not None,
        **({"text_length": nulls[0]} if nulls else {}),
    }
    published: dict[str, Any] = {"heads": _HEADS} if width == _WIDTH else {}
    if frames := columns(shapes, "pos_embed_temporal"):
        published["frames"] = frames
    tokens = columns(shapes, "pos_embed")
    if tokens and math.isqrt(tokens) ** 2 == tokens:
        published["input_size"] = math.isqrt(tokens) * side
    return resolve(
        Config,
        inferred,
        config,
        named and dataclasses.replace(named, with_null_caption=nulls is not None),
        renamed={"hidden_size": "width", "num_heads": "heads", "model_max_length": "text_length"},
        supported={},
        published=published,
        # They have defaults, but none that fits all models.
        required=("heads", "frames", "input_size", "space_scale", "time_scale", "text_length"),
        hint="pass them in config (--config), or model (--model), such as 'stdit-xl-2-16x512x512'",
    )


def defaults(config: Config, format: str) -> dict[str, Any]:
    """How the authors sample: ancestral, 100 steps, 3 channels guided, with a learned null caption.

    ViDiT-Q samples with 20 steps of it, or with DDIM; the faster solver of the original guides all channels.
    """
    null = "table" if config.with_null_caption else "encoded"
    ancestral = {"spacing": "K", "variance": "learned_range"}
    guidance = {"scale": 7.0, "channels": 3, "null": null, "mask": "prompt", "order": "cond_first"}
    solver = {"channels": None, "order": "uncond_first"}
    return {
        "sampler": {"name": "iddpm", "options": ancestral, "steps": 100},
        "guidance": guidance,
        "samplings": {
            "iddpm": {"options": ancestral, "steps": 100, "guidance": guidance},
            "ddim": {"options": {"spacing": "K"}, "steps": 100, "guidance": {**guidance, "scale": 4.0}},
            "dpm_solver": {"options": {"grid": "continuous"}, "steps": 20, "guidance": guidance | solver},
        },
        "conditions": {"kind": "prompt", "clean_caption": True},
        "fps": 12 if config.frames > 16 else 8,
    }


def latent_scale(config: Config) -> float:
    """The scaling factor of the autoencoder that the published models were trained with."""
    return 0.18215
