"""T5 v1.1 encoders as transformers saves them, with a decoder (which is left behind) or without."""

from collections.abc import Mapping
from typing import Any

from converters.configs import Shapes, numbers, resolve, rows
from converters.rules import Table, same
from viditq_jax.models.t5 import Config

TITLE = "T5 v1.1 encoder"
PART = "text_encoder"
PUBLISHED: dict[str, str] = {}
_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def _transformers(config: Config) -> Table:
    rules = (
        same("shared.weight"),
        same("shared.weight", "encoder.embed_tokens.weight"),  # the same table under its other name
        same("{name}"),
    )
    return Table(rules, drop=("shared.weight", "encoder.embed_tokens.weight", "decoder.*", "lm_head.*"))


FORMATS = {"transformers": _transformers}


def detect(shapes: Shapes) -> str | None:
    """The format of a T5 v1.1 checkpoint, or None: T5 v1.0 has no gate, umT5 has a bias in every block."""
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    return "transformers" if gated and _BIAS.format(0) in shapes and _BIAS.format(1) not in shapes else None


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    embedding = shapes.get("shared.weight") or shapes.get("encoder.embed_tokens.weight") or (0, 0)
    buckets, heads = shapes[_BIAS.format(0)]
    inferred = {
        "num_layers": len(numbers(shapes, "encoder.block.{i}.")),
        "d_model": embedding[-1],
        "vocab_size": embedding[0],
        "d_ff": rows(shapes, "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
        "num_heads": heads,
        "d_kv": rows(shapes, "encoder.block.0.layer.0.SelfAttention.q.weight") // max(heads, 1),
        "relative_attention_num_buckets": buckets,
    }
    return resolve(
        Config,
        inferred,
        config,
        named,
        renamed={},
        supported={
            "model_type": ("t5",),
            "feed_forward_proj": ("gated-gelu",),
            "dense_act_fn": ("gelu_new",),
            "is_gated_act": (True,),
        },
        published={},
        hint="pass the folder with its config.json",
    )
