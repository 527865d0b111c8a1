"""Bring a PyTorch checkpoint into an artifact: viditq convert PixArt-Sigma-XL-2-1024-MS.pth --out sigma

The source is a diffusers pipeline folder, or one checkpoint file or folder of a denoiser with the other parts
named by flags. Without a source the packaged default model is converted.
"""

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import tyro

from converters import convert
from viditq_jax import checkpoint
from viditq_jax.cli._common import working
from viditq_jax.load import PACKAGED, packaged_model


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq convert`."""

    source: Annotated[str, tyro.conf.Positional] = "default"
    """A diffusers folder, a checkpoint (.pt, .pth, .bin, .safetensors, or an index of shards), or
    "default" or "default-video".
    """
    out: Path = Path("runs/float")
    """Where the artifact goes."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """How parameters are stored."""
    model: str | None = None
    """A named config such as pixart-sigma-xl-2-1024-ms, where the checkpoint does not tell it."""
    text_encoder: Path | None = None
    """A T5 encoder: file or folder."""
    tokenizer: Path | None = None
    """spiece.model or tokenizer.json, or their folder."""
    vae: Path | None = None
    """An AutoencoderKL: file or folder."""
    scheduler: Path | None = None
    """A diffusers scheduler_config.json."""
    config: Path | None = None
    """A diffusers config.json for a denoiser file that lies alone."""
    overwrite: bool = False
    """Replace an artifact of this name."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Convert, write, and say what was written."""
    if options.out.exists() and not options.overwrite:
        raise checkpoint.ArtifactError(
            f"{options.out} exists already; choose another --out, or add --overwrite."
        )
    packaged = options.source in PACKAGED
    place = packaged_model(options.source) if packaged else nullcontext(Path(options.source))
    with place as source, working("converting"):
        artifact = convert(
            source,
            dtype=jnp.dtype(options.dtype),
            model=options.model,
            text_encoder=options.text_encoder,
            vae=options.vae,
            tokenizer=options.tokenizer,
            scheduler=options.scheduler,
            config=options.config,
        )
        checkpoint.save(artifact, options.out, overwrite=options.overwrite)
    parts = {name: artifact.facts[name]["model"] for name in artifact.nets}
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    if options.json:
        return {"artifact": str(options.out), "parts": parts, "artifact_bytes": size}
    named = ", ".join(f"{name} ({model})" for name, model in parts.items())
    return f"{options.out}: {named}; {size / 1e6:.1f} MB"
