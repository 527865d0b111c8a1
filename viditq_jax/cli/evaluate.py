"""Compare pictures with reference pictures, or recipes with each other: viditq evaluate runs/generate-w8a8

Two folders of `viditq generate` with the same prompts and seed are compared: that one, by `viditq generate
--recipe w8a8`, with runs/generate, by `viditq generate`, where --reference names no other. With --recipes,
each recipe is made and measured on the model, and on the same model with planted channel outliers
("stressed"); a killed run goes on: viditq evaluate --recipes all --out runs/recipes, then
viditq report runs/recipes
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.cli._common import bar, conditions, working
from viditq_jax.compare import compare_recipes, packaged_recipes, result_rows
from viditq_jax.evaluate import evaluate
from viditq_jax.files import write_json
from viditq_jax.load import PACKAGED, load_pipeline
from viditq_jax.post_training import default_conditions


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq evaluate`."""

    pictures: Annotated[Path, tyro.conf.Positional] = Path("runs/generate-w8a8")
    """The pictures to judge."""
    reference: Path = Path("runs/generate")
    """The pictures to compare with."""
    metrics: tuple[str, ...] = ()
    """Which measures, by name; psnr and ssim, of videos also how they move, where none is named. With weights
    on this machine: clip_score=FOLDER, lpips=FILE, fid_inception=FILE."""
    recipes: tuple[str, ...] = ()
    """Compare recipes instead: packaged names or files, or "all" packaged ones."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "default"
    """With --recipes: an artifact, a checkpoint, "default" or "default-video"."""
    prompts: Path | None = None
    """With --recipes: a file with one prompt a line; the packaged ones where not given."""
    count: int = 16
    """With --recipes: how many of the prompts or classes."""
    out: Path = Path("runs/recipes")
    """With --recipes: the run folder."""
    record: Path | None = None
    """With --recipes: a JSON file for the figures, one row a variant."""
    stress: bool = True
    """With --recipes: also on the model with planted channel outliers."""
    seed: int = 0
    """With --recipes: sample i draws its noise from (seed, i)."""
    batch: int = 8
    """With --recipes: samples computed together."""
    resume: bool = True
    """With --recipes: keep finished variants of the same settings."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Measure and print."""
    if options.recipes:
        return _recipes(options)
    results = evaluate(options.pictures, options.metrics, reference=options.reference)
    return (
        results if options.json else "\n".join(f"{name:<20} {value:.4f}" for name, value in results.items())
    )


def _recipes(options: Options) -> Any:
    """Make and measure the recipes, and list what came out."""
    if options.count < 1:
        raise ValueError(f"--count is {options.count}; it must be at least 1.")
    with working("loading"):
        pipeline = load_pipeline(options.model)
    file = options.prompts
    samples = conditions((), file, (), pipeline) if file else default_conditions(pipeline)
    every = "all" in options.recipes
    records = compare_recipes(
        pipeline,
        packaged_recipes() if every else options.recipes,
        samples[: options.count],
        options.out,
        title=options.model if options.model in PACKAGED else Path(options.model).stem,
        stressed=options.stress,
        skip_misfits=every,
        seed=options.seed,
        batch=options.batch,
        resume=options.resume,
        progress=bar,
    )
    rows = result_rows(records)
    if options.record:
        write_json(options.record, rows)
    if options.json:
        return rows
    figures = (*_FIGURES, *(_TEMPORAL if pipeline.frames else ()))
    head = " ".join(f"{title:>8}" for _, title, _ in figures)
    lines = [f"{'model':<13} {'recipe':<26} {head}", *(_line(row, figures) for row in rows)]
    lines += [f"skipped {name}: {reason}" for name, reason in records["skipped"].items()]
    return "\n".join([*lines, f"viditq report {options.out}  draws them"])


_FIGURES = (  # field, title, digits
    ("psnr_db", "PSNR", 2),
    ("ssim", "SSIM", 4),
    ("latent_rel_l2", "latents", 4),
    ("weight_bytes_vs_bfloat16", "weights", 3),
    ("seconds_per_image", "s/sample", 3),
)
_TEMPORAL = (
    ("frame_consistency", "alike", 4),
    ("flicker_levels", "flicker", 3),
    ("warping_error_levels", "warping", 3),
    ("motion_error_px", "motion", 3),
)


def _line(row: dict[str, Any], figures: Sequence[tuple[str, str, int]]) -> str:
    cells = [
        f"{row[name]:8.{digits}f}" if row.get(name) is not None else f"{'-':>8}"
        for name, _, digits in figures
    ]
    return f"{row['model']:<13} {row['recipe']:<26} {' '.join(cells)}"
