"""Write the sampling program as StableHLO: viditq export -m runs/w8a8 --out runs/w8a8-program --batch 4

The folder holds programs for the chosen platforms, and the weights once. `viditq_jax.export.load_exported`
runs it without the model. A program is for one batch size, size, number of frames and steps. Needs the extra
"export".
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.checkpoint import ArtifactError
from viditq_jax.cli._common import quantized, working
from viditq_jax.export import export_pipeline
from viditq_jax.load import load_pipeline


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq export`."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "default"
    """An artifact, a checkpoint, "default" or "default-video"."""
    out: Path = Path("runs/program")
    """The folder of the programs."""
    recipe: str | None = None
    """Quantize in memory first: a packaged recipe, or a JSON file."""
    batch: int = 1
    """Samples that a call makes."""
    steps: int | None = None
    """Denoising steps."""
    guidance: float | None = None
    """Guidance scale where a call names none; 1 exports a program without guidance."""
    sampler: str | None = None
    """ddim, iddpm, dpm_solver or flow_euler, where another than the model's own is wanted."""
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    frames: int | None = None
    """Frames of a video, where another number than the model's own is wanted."""
    platforms: tuple[str, ...] = ("cpu",)
    """Where the program is to run: cpu, cuda, tpu."""
    overwrite: bool = False
    """Replace exported programs of this name."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Load, quantize if asked, export, and say what was written."""
    if options.out.exists() and not options.overwrite:
        raise ArtifactError(f"{options.out} exists already; choose another --out, or add --overwrite.")
    with working("loading"):
        pipeline = load_pipeline(options.model)
    if options.sampler:
        pipeline = pipeline.with_sampler(options.sampler)
    if options.recipe:
        pipeline = quantized(pipeline, options.recipe)
    with working("exporting"):
        out = export_pipeline(
            pipeline,
            options.out,
            batch=options.batch,
            steps=options.steps,
            guidance=options.guidance,
            size=options.size,
            frames=options.frames,
            platforms=options.platforms,
            overwrite=options.overwrite,
        )
    sizes = {
        path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()
    }
    programs = sum(size for name, size in sizes.items() if name.endswith(".jaxexport"))
    weights = sum(size for name, size in sizes.items() if name.startswith("weights/"))
    if options.json:
        return {"folder": str(out), "platforms": list(options.platforms), "files": sizes}
    return (
        f"{out}: programs for {', '.join(options.platforms)} of {programs / 1e6:.2f} MB, and weights of "
        f"{weights / 1e6:.2f} MB"
    )
