"""Which model a checkpoint holds: ours by the family modules beside this file, others by names they have.

A family module defines
    TITLE       its name in messages
    PART        what it is in a pipeline: "denoiser", "decoder" or "text_encoder"
    PUBLISHED   stems of published files -> named configs, for what such a file does not tell
    FORMATS     names of formats -> functions from a Config to a `rules.Table`
    detect(shapes) -> str | None                            the format, None for another family
    read_config(shapes, format, config, named) -> Config
and a denoiser also
    PIPELINES   diffusers pipeline classes -> fields of the Config that the class implies
    defaults(config, format) -> dict                  sampler, guidance, conditions, frames a second
    latent_scale(config) -> float                           scaling factor of its autoencoder if no file tells
and where some models need an autoencoder that we have not
    without_decoder(config) -> str                          why there can be no decoder, or nothing
"""

import difflib
import re
from typing import Any

from converters.sources import Source, Tensors, views
from converters.tensor import ConversionError
from viditq_jax import plugins

# What other models look like, most telling first: a name pattern that all of them have.
_STRANGERS = (
    (r"mixins\.adaln_layer.*", "CogVideoX (SAT)"),
    (r"joint_blocks\..*", "Stable Diffusion 3"),
    (r"double_blocks\..*img_mod\.lin\..*", "FLUX.1"),
    (r"double_blocks\..*", "HunyuanVideo"),
    (r"single_transformer_blocks\..*", "FLUX.1 or HunyuanVideo (diffusers)"),
    (r"blocks\.0\.self_attn\.q\.weight", "Wan 2.1"),
    (r"condition_embedder\..*", "Wan 2.1 (diffusers)"),
    (r"transformer_blocks\.0\.attn\.add_k_proj\.weight", "Stable Diffusion 3 (diffusers)"),
    (r"patch_embed\.text_proj\..*", "CogVideoX (diffusers)"),
    (r"encoder\.block\.1\.layer\.0\.SelfAttention\.relative_attention_bias\.weight", "umT5"),
    (r"encoder\.block\.0\.layer\.1\.DenseReluDense\.wi\.weight", "T5 v1.0"),
    (r"(input_blocks\.0|conv_in\.weight|time_embed\.0).*", "a U-Net such as Stable Diffusion 1 and 2"),
    (r"(.*\.)?text_model\.encoder\..*", "CLIP"),
    (r".*\.lora_[A-Za-z]+.*", "a LoRA, which is an addition to a model"),
)


def find(model: str) -> Any:
    """The family module of a model such as "pixart"."""
    found = members()
    if model not in found:
        near = difflib.get_close_matches(model, found, n=2, cutoff=0.4) or sorted(found)
        raise ConversionError(
            f"there is no converter for {model!r}; did you mean {' or '.join(near)}? "
            f"Known: {', '.join(found)}."
        )
    return found[model]


def members(part: str | None = None) -> dict[str, Any]:
    """All family modules by name, or those of one part of a pipeline."""
    modules = {name: plugins.find("converters", name) for name in plugins.names("converters")}
    families = {name: module for name, module in modules.items() if hasattr(module, "FORMATS")}
    return {name: module for name, module in families.items() if part in (None, module.PART)}


def recognize(source: Source, part: str) -> tuple[str, str, Tensors]:
    """The model, the format and the tensors of that part of a pipeline in a checkpoint.

    Raises ConversionError, which names the family that the checkpoint looks like, if it is none of `part`.
    """
    wanted = members(part)
    for tensors in views(source.tensors):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for model, family in wanted.items():
            if (format := family.detect(shapes)) is not None:
                return model, format, tensors
    titles = ", ".join(family.TITLE for family in wanted.values())
    raise ConversionError(
        f"{source.file} is not a {part.replace('_', ' ')} we know ({titles}): it looks like {_look(source)}."
    )


def _look(source: Source) -> str:
    for tensors in views(source.tensors):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        for family in members().values():
            if family.detect(shapes) is not None:
                return f"{family.TITLE}; give it as the {family.PART.replace('_', ' ')}"
        for pattern, title in _STRANGERS:
            if any(re.fullmatch(pattern, name) for name in tensors):
                return f"{title}, which is not supported here"
    return f"no model we know; its first names are {', '.join(list(source.tensors)[:3])}"
