"""Quantize the denoiser of an artifact: viditq quantize runs/float --recipe w8a8 --out runs/w8a8

A recipe is a packaged name or a JSON file. One that needs statistics of the inputs is calibrated first, on
the packaged prompts or on those of --prompts, or takes them from a file that `viditq calibrate` made.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.checkpoint import KIND
from viditq_jax.cli._common import quantized
from viditq_jax.load import load_pipeline
from viditq_jax.quant.size import weight_bytes
from viditq_jax.sealed import check_free


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq quantize`."""

    source: Annotated[str, tyro.conf.Positional] = "default"
    """An artifact, a checkpoint, "default" or "default-video"."""
    recipe: str = "w8a8"
    """A packaged recipe, or a JSON file."""
    out: Path | None = None
    """Where the artifact goes; runs/RECIPE where not given."""
    prompts: Path | None = None
    """Prompts to calibrate with, one a line."""
    stats: Path | None = None
    """Statistics that `viditq calibrate` made for this recipe."""
    seed: int = 0
    """Seed of the calibration's noise."""
    overwrite: bool = False
    """Replace an artifact of this name."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Quantize, write, and say how much smaller the quantized weights are."""
    out = options.out or Path("runs") / Path(options.recipe).stem
    check_free(out, KIND, overwrite=options.overwrite)  # before the work
    pipeline = quantized(
        load_pipeline(options.source),
        options.recipe,
        prompts=options.prompts,
        stats=options.stats,
        seed=options.seed,
    )
    pipeline.save(out, overwrite=options.overwrite)
    sizes = weight_bytes(pipeline.denoiser)
    before, after = sum(row.dense for row in sizes.values()), sum(row.stored for row in sizes.values())
    if options.json:
        return {
            "artifact": str(out),
            "recipe": options.recipe,
            "layers": len(sizes),
            "weight_bytes": after,
            "bfloat16_weight_bytes": before,
        }
    if not sizes:
        return f"{out}: recipe {options.recipe} quantizes no layer"
    return (
        f"{out}: {len(sizes)} linear layers quantized, {before / 1e6:.2f} MB in bfloat16 -> "
        f"{after / 1e6:.2f} MB ({after / before:.3f}x)"
    )
