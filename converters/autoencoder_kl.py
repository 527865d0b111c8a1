"""AutoencoderKL checkpoints: diffusers folders, those of 2022 with other attention names, and LDM files."""

from collections.abc import Mapping
from typing import Any

from converters.configs import Shapes, columns, numbers, resolve, rows
from converters.rules import CONV, POINTWISE, Rule, Table, same
from viditq_jax.models.autoencoder_kl import Config

TITLE = "AutoencoderKL"
PART = "decoder"
PUBLISHED: dict[str, str] = {}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_LDM_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(target: str, source: str) -> tuple[Rule, Rule]:
    """A convolution or a norm under another name."""
    return Rule(f"{target}.kernel", (f"{source}.weight",), CONV), same(
        f"{target}.{{leaf}}", f"{source}.{{leaf}}"
    )


def _diffusers(config: Config) -> Table:
    return Table((*_renamed("{name}", "{name}"), same("{name}")))


def _diffusers_2022(config: Config) -> Table:
    attention = "{name}.attentions.0"
    old = (
        same(f"{attention}.{new}.{{leaf}}", f"{attention}.{name}.{{leaf}}")
        for new, name in _OLD_ATTENTION.items()
    )
    return Table((*old, *_diffusers(config).rules))


def _ldm(config: Config) -> Table:
    rules: list[Rule] = []
    stages = len(config.block_out_channels)
    for stage in range(stages):
        down, up = f"encoder.down_blocks.{stage}", f"decoder.up_blocks.{stage}"
        rules += _stage(f"{down}.resnets", f"encoder.down.{stage}.block")
        rules += _renamed(f"{down}.downsamplers.0.conv", f"encoder.down.{stage}.downsample.conv")
        rules += _stage(f"{up}.resnets", f"decoder.up.{stages - 1 - stage}.block")  # counted from the pixels
        rules += _renamed(f"{up}.upsamplers.0.conv", f"decoder.up.{stages - 1 - stage}.upsample.conv")
    for side in ("encoder", "decoder"):
        ours, theirs = f"{side}.mid_block.attentions.0", f"{side}.mid.attn_1"
        for name, other in _LDM_ATTENTION.items():
            rules.append(Rule(f"{ours}.{name}.weight", (f"{theirs}.{other}.weight",), POINTWISE))
            rules.append(same(f"{ours}.{name}.bias", f"{theirs}.{other}.bias"))
        rules += _renamed(f"{ours}.group_norm", f"{theirs}.norm")
        for index in range(2):
            rules += _renamed(
                f"{side}.mid_block.resnets.{index}.{{name}}", f"{side}.mid.block_{index + 1}.{{name}}"
            )
        rules += _renamed(f"{side}.conv_norm_out", f"{side}.norm_out")
    return Table((*rules, *_renamed("{name}", "{name}")), drop=("loss.*",))


def _stage(target: str, source: str) -> tuple[Rule, ...]:
    """The residual blocks of a stage."""
    return (
        *_renamed(f"{target}.{{j}}.conv_shortcut", f"{source}.{{j}}.nin_shortcut"),
        *_renamed(f"{target}.{{j}}.{{name}}", f"{source}.{{j}}.{{name}}"),
    )


FORMATS = {"diffusers": _diffusers, "diffusers-2022": _diffusers_2022, "ldm": _ldm}


def detect(shapes: Shapes) -> str | None:
    """The format of an AutoencoderKL checkpoint, or None if it is none."""
    if len(shapes.get("decoder.conv_in.weight", ())) != 4:  # videos have five axes
        return None
    if "decoder.up_blocks.0.resnets.0.conv1.weight" in shapes:
        old = "decoder.mid_block.attentions.0.query.weight" in shapes
        return "diffusers-2022" if old else "diffusers"
    return "ldm" if "decoder.up.0.block.0.conv1.weight" in shapes else None


def read_config(
    shapes: Shapes, format: str, config: Mapping[str, Any] | None = None, named: Config | None = None
) -> Config:
    """The Config of a checkpoint whose names and shapes are given; see `configs.resolve` for errors."""
    stage = "encoder.down.{}.block." if format == "ldm" else "encoder.down_blocks.{}.resnets."
    attention = "decoder.mid.attn_1." if format == "ldm" else "decoder.mid_block.attentions.0."
    stages = numbers(shapes, stage.partition("{}")[0] + "{i}.")
    inferred = {
        "block_out_channels": tuple(rows(shapes, f"{stage.format(i)}0.conv1.weight") for i in stages),
        "layers_per_block": len(numbers(shapes, stage.format(0) + "{i}.")),
        "latent_channels": columns(shapes, "decoder.conv_in.weight"),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": any(name.startswith(attention) for name in shapes),
    }
    return resolve(
        Config,
        inferred,
        config,
        named,
        renamed={},
        supported={
            "act_fn": ("silu",),
            "in_channels": (3,),
            "out_channels": (3,),
            "down_block_types": (["DownEncoderBlock2D"] * len(stages),),
            "up_block_types": (["UpDecoderBlock2D"] * len(stages),),
            "latents_mean": (None,),
            "latents_std": (None,),
        },
        published={},
        required=("scaling_factor",)
        if config is None
        else (),  # 0.18215 in config.json files that do not say
        hint="pass its folder with the config.json",
    )
