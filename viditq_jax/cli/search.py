"""Choose the bits of each layer for a budget: viditq search --budget 5 --out runs/search

Measures what the samples lose when one layer alone has fewer bits, solves an integer program for the
budget, and judges the plan on prompts that it has not seen. A killed search goes on when it is started
again with the same flags. Then: viditq generate --recipe runs/search/plan.json
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from viditq_jax.cli._common import bar, conditions, working
from viditq_jax.files import write_json, writing
from viditq_jax.load import load_pipeline
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.report.search import pareto_chart, sensitivity_chart
from viditq_jax.search import result_rows, search
from viditq_jax.stress import stress


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq search`."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "default"
    """An artifact, a checkpoint, or a packaged model: "default", "default-video"."""
    budget: float = 5.0
    """Average bits of the weights, or what --measure says."""
    measure: Literal["bits", "bytes", "seconds"] = "bits"
    """What the budget counts: average weight bits, bytes that the layers store, or seconds of the layers in a
    denoising step of --batch samples, as `viditq bench --tune` measured them on this device."""
    recipe: str = "w4a8"
    """Gives the layers everything but their bits: a packaged recipe, or a JSON file."""
    bits: tuple[int, ...] = (4, 8)
    """Widths that a layer may have."""
    budgets: tuple[float, ...] = ()
    """More budgets, for the curve of quality over size."""
    by: Literal["layer", "kind", "block"] = "layer"
    """What shares its bits: nothing, all layers of a kind in a block, or whole blocks."""
    ranges: tuple[int, ...] = ()
    """Times at which sensitivities are told apart, such as 250 500 750; the plan is the same at all times."""
    vary: bool = False
    """Let bits change from one of the --ranges to the next; every width of a layer stays in memory."""
    one_metric: bool = False
    """One metric for all layers, the error of the latents, instead of one for each group of layers."""
    stress: bool = False
    """Search on the model with planted channel outliers, which leave its float function as it is."""
    cheap: bool = False
    """Sensitivities from calibration alone, without sampling."""
    floor: tuple[str, ...] = ()
    """Fewest bits of the layers that a pattern matches, such as "blocks/0/*=8"."""
    prompts: Path | None = None
    """A file with one prompt a line, for the search; packaged ones where not given."""
    shard: tuple[int, int] = (0, 1)
    """I N: measure every N-th unit from I on and stop; when all are through, a search without this flag goes
    on from their tables in the same folder."""
    out: Path = Path("runs/search")
    """Folder of the table, the plan and the charts."""
    record: Path | None = None
    """A JSON file for the figures, one row a plan."""
    seed: int = 0
    """Sample i draws its noise from (seed, i)."""
    batch: int = 8
    """Samples computed together."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Search, draw, and list the plans."""
    floors = dict(_floor(text) for text in options.floor)
    with working("loading"):
        pipeline = load_pipeline(options.model)
        if options.stress:
            pipeline = dataclasses.replace(pipeline, denoiser=stress(pipeline.denoiser))
    record = search(
        pipeline,
        load_recipe(options.recipe),
        options.out,
        budget=options.budget,
        measure=options.measure,
        bits=options.bits,
        conditions=conditions((), options.prompts, (), pipeline) if options.prompts else None,
        by=options.by,
        bounds=options.ranges,
        budgets=options.budgets,
        floors=floors,
        group_metrics={} if options.one_metric else None,
        cheap=options.cheap,
        vary=options.vary,
        shard=options.shard,
        seed=options.seed,
        batch=options.batch,
        progress=bar,
    )
    if "plans" not in record:
        return record if options.json else f"{record['table']}: {record['rows']} rows"
    for name, draw in (("sensitivities.png", sensitivity_chart), ("pareto.png", pareto_chart)):
        with writing(options.out / name) as file:
            draw(record).savefig(file, format="png", dpi=150)
    rows = result_rows(record)
    if options.record:
        write_json(options.record, rows)
    if options.json:
        return rows
    head = f"{'budget':>9} {'plan':<8} {'bits':>5} {'MB':>7} {'PSNR':>7} {'latents':>8}"
    head += f" {'predicted':>10} {'measured':>9}"
    plan = options.out / "plan.json"
    return "\n".join([head, *map(_line, rows), f"{plan}: viditq generate --recipe {plan}"])


def _floor(text: str) -> tuple[str, int]:
    pattern, _, bits = text.rpartition("=")
    if not pattern or not bits.isdigit():
        raise ValueError(f"--floor {text!r}: write a pattern and its bits, such as blocks/0/*=8.")
    return pattern, int(bits)


def _line(row: dict[str, Any]) -> str:
    psnr = "inf" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"
    return (
        f"{row['budget']:>9g} {row['plan']:<8} {row['average_bits']:>5.2f} {row['weight_bytes'] / 1e6:>7.2f}"
        f" {psnr:>7} {row['latent_rel_l2']:>8.4f} {row['predicted']:>10.2e} {row['measured']:>9.2e}"
    )
