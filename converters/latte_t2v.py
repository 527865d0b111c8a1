"""Latte-1 checkpoints: folders of diffusers; the original files have the same names."""

from collections.abc import Mapping
from typing import Any

from converters.configs import Shapes, columns, numbers, ratio, resolve, rows
from converters.rules import Rule, Table, fused, patch, same
from viditq_jax.models.latte_t2v import Config

TITLE = "Latte-1"
PART = "denoiser"
PUBLISHED: dict[str, str] = {}  # published as folders, whose config.json tells all
PIPELINES = {"LattePipeline": {"text_length": 120}}  # its transformer does not say how long captions are
_WIDTH, _HEADS = 1152, 16  # of every published model


def _diffusers(config: Config) -> Table:
    emb = "adaln_single.emb.timestep_embedder"

    def block(ours: str, theirs: str) -> tuple[Rule, ...]:
        def attention(index: int, parts: str) -> tuple[str, ...]:
            return tuple(f"{theirs}.attn{index}.to_{part}.{{leaf}}" for part in parts)

        return (
            same(f"{ours}.scale_shift_table", f"{theirs}.scale_shift_table"),
            Rule(f"{ours}.attn.qkv.{{leaf}}", attention(1, "qkv"), fused(3)),
            same(f"{ours}.attn.proj.{{leaf}}", f"{theirs}.attn1.to_out.0.{{leaf}}"),
            same(f"{ours}.cross_attn.q_linear.{{leaf}}", f"{theirs}.attn2.to_q.{{leaf}}"),
            Rule(f"{ours}.cross_attn.kv_linear.{{leaf}}", attention(2, "kv"), fused(2)),
            same(f"{ours}.cross_attn.proj.{{leaf}}", f"{theirs}.attn2.to_out.0.{{leaf}}"),
            same(f"{ours}.mlp.fc1.{{leaf}}", f"{theirs}.ff.net.0.proj.{{leaf}}"),
            same(f"{ours}.mlp.fc2.{{leaf}}", f"{theirs}.ff.net.2.{{leaf}}"),
        )

    rules = (
        Rule("x_embedder.proj.weight", ("pos_embed.proj.weight",), patch(config.patch_size)),
        same("x_embedder.proj.bias", "pos_embed.proj.bias"),
        same("t_embedder.mlp.0.{leaf}", f"{emb}.linear_1.{{leaf}}"),
        same("t_embedder.mlp.2.{leaf}", f"{emb}.linear_2.{{leaf}}"),
        same("t_block.1.{leaf}", "adaln_single.linear.{leaf}"),
        same("y_embedder.y_proj.fc1.{leaf}", "caption_projection.linear_1.{leaf}"),
        same("y_embedder.y_proj.fc2.{leaf}", "caption_projection.linear_2.{leaf}"),
        *block("blocks.{i}.spatial", "transformer_blocks.{i}"),
        *block("blocks.{i}.temporal", "temporal_transformer_blocks.{i}"),
        same("final_layer.linear.{leaf}", "proj_out.{leaf}"),
        same("final_layer.scale_shift_table", "scale_shift_table"),
    )
    return Table(rules, drop=("pos_embed.pos_embed", "temp_pos_embed"))


FORMATS = {"diffusers": _diffusers}


def detect(shapes: Shapes) -> str | None:
    """The format of a Latte-1 checkpoint, or None if it is none."""
    own = {"adaln_single.linear.weight", "temporal_transformer_blocks.0.scale_shift_table"}
    return "diffusers" if own <= shapes.keys() else None


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    config, embed = dict(config or {}), "pos_embed.proj.weight"
    width, side = rows(shapes, embed), shapes.get(embed, (1,))[-1]
    heads = config.get("num_attention_heads")
    return resolve(
        Config,
        {
            "width": width,
            "depth": len(numbers(shapes, "temporal_transformer_blocks.{i}.")),
            "patch_size": side,
            "in_channels": columns(shapes, embed),
            "out_channels": rows(shapes, "proj_out.weight") // side**2,
            "mlp_ratio": ratio(rows(shapes, "transformer_blocks.0.ff.net.0.proj.weight"), width),
            "caption_channels": columns(shapes, "caption_projection.linear_1.weight"),
        },
        config,
        named,
        renamed={
            "num_attention_heads": "heads",
            "num_layers": "depth",
            "sample_size": "input_size",
            "video_length": "frames",
        },
        supported={
            "activation_fn": ("gelu-approximate",),
            "attention_bias": (True,),
            "norm_type": ("ada_norm_single",),
            "norm_elementwise_affine": (False,),
            "norm_eps": (1e-6,),
            **({"attention_head_dim": (width // heads,)} if isinstance(heads, int) and heads else {}),
        },
        published={"heads": _HEADS} if width == _WIDTH else {},
        # They have defaults, but none that fits all models.
        required=("heads", "input_size", "frames", "text_length"),
        hint="pass the diffusers config.json as config (--config), or model (--model) 'latte-1'",
    )


def defaults(config: Config, format: str) -> dict[str, Any]:
    """How the authors sample: DDIM, 50 steps, all channels guided, each half as long as the prompt."""
    guidance = {"channels": None, "null": "encoded", "mask": "prompt", "order": "uncond_first"}
    return {
        "sampler": {"name": "ddim", "options": {"spacing": "leading"}, "steps": 50},
        "guidance": {"scale": 7.5, **guidance},
        "conditions": {"kind": "prompt", "clean_caption": True},
        "fps": 8,
    }


def latent_scale(config: Config) -> float:
    """The scaling factor of the autoencoder that the published model was trained with."""
    return 0.18215
