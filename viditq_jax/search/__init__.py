"""Search of the bits of a pipeline's layers: sensitivities from its own samples, then a plan for a budget.

    statistics.safetensors   calibration of the float model, where the recipe needs one
    table.jsonl              sensitivities, a line a unit; a killed search goes on behind the last
    plan.json                the recipe that was found, for `viditq quantize --recipe`
    search.json              all plans that were judged, and how; what `viditq report --search` draws

Units are measured with all other layers at the most bits and inputs that are not rounded, in one compiled
program. Plans are judged on conditions that the search never saw.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from viditq_jax import plugins
from viditq_jax.calibrate import calibrate
from viditq_jax.checkpoint import fingerprint, versions
from viditq_jax.compare import Progress, silent
from viditq_jax.conditions import packaged_prompts
from viditq_jax.files import write_json
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import calibration_conditions, calibration_texts, default_conditions
from viditq_jax.quant.matching import matches
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.search.allocate import allocate, bits_of
from viditq_jax.quant.search.sensitivity import Metric, proxy, sensitivity, units
from viditq_jax.quant.search.table import Layer, Table, gather
from viditq_jax.quant.search.variants import Variants, searched
from viditq_jax.quant.stats import Stats
from viditq_jax.search.judge import Judge, runner
from viditq_jax.search.samples import METRICS, VIDEO_METRICS
from viditq_jax.search.seconds import layer_seconds

VISUAL = "visual"  # the group of layers that no pattern of the model's names
SEARCHED = 8  # classes that a search samples
GROUP_METRICS = {"text": "structure", VISUAL: "detail", "temporal": "motion"}


def search(
    pipeline: Pipeline,
    recipe: Recipe,
    out: str | Path,
    *,
    budget: int | float,
    measure: str = "bits",
    bits: Sequence[int] = (4, 8),
    conditions: Sequence[str | int] | None = None,
    judges: Sequence[str | int] | None = None,
    by: str = "layer",
    bounds: tuple[int, ...] = (),
    budgets: Sequence[int | float] = (),
    floors: Mapping[str, int] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    group_metrics: Mapping[str, str] | None = None,
    cheap: bool = False,
    vary: bool = False,
    shard: tuple[int, int] = (0, 1),
    seed: int = 0,
    batch: int = 8,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure sensitivities, choose bits within the budget, and judge the plan; what `search.json` holds.

    pipeline: in floating point. recipe: gives the layers everything but their bits.
    budget, measure, floors: of `allocate`; seconds are those of a denoising step of `batch` samples.
    bits: that a layer may have. by: of `units`.
    conditions: that the search samples; `search_conditions` where not given. judges: that plans are judged
        on; the default conditions where not given.
    bounds: times at which sensitivities are told apart; the plan is the same at all times, unless `vary`:
        then bits may change from range to range, every width that a layer has stays in memory, and the plan
        that is the same at all times is written beside it, as plan-same.json.
    budgets: more of them, for the curve of quality over size: each by program and by greedy rule.
    metrics: (samples, reference) -> a number that is 0 where they are equal; with "latent", which splits
        the budget between groups. group_metrics: the metric of each group of the model's layers.
    cheap: sensitivities from the statistics alone, without sampling; needs a rounding that keeps Gram
        matrices.
    shard: (i, n) measures every n-th unit from i on, and makes no plan unless it is (0, 1), which takes over
        what the shards before it have left in `out`.
    Raises ValueError for a quantized pipeline, for an `out` of other settings, and as `allocate` does.
    """
    if pipeline.recipe is not None:
        raise ValueError("this pipeline is quantized already; give the float pipeline that it came from.")
    bits = tuple(sorted(set(bits)))
    if len(bits) < 2:
        raise ValueError(f"bits are {list(bits)}; give at least two to choose from.")
    if vary and not bounds:
        raise ValueError("bits can only change over denoising ranges; give the times at which they meet.")
    if cheap and bounds:
        raise ValueError("statistics alone tell no denoising ranges apart; leave the ranges out, or sample.")
    out, net = Path(out), pipeline.denoiser
    known = VIDEO_METRICS if pipeline.frames is not None else METRICS
    chosen = dict(known if metrics is None else metrics)
    samples = list(search_conditions(pipeline) if conditions is None else conditions)
    count = len(units(list(searched(recipe, net)), by)) * (len(bits) - 1) * (len(bounds) + 1)
    out.mkdir(parents=True, exist_ok=True)
    stats = _statistics(pipeline, recipe, out, seed + 1, batch, progress)
    with progress("quantizing to each of the bits", len(bits)) as advance:
        variants = Variants.of(net, recipe, bits, stats)
        advance(len(bits))
    table = _empty(pipeline, recipe, variants, bits, bounds, by, samples, seed, batch, sorted(chosen))
    if cheap:
        table, error = proxy(net, table, variants, stats, by=by), "layer_error"
    else:
        sample, alone = runner(pipeline, samples, seed, batch, bounds), variants.weights_alone()
        error, whole = "latent", shard == (0, 1)
        file = out / ("table.jsonl" if whole else f"table-{shard[0]}-of-{shard[1]}.jsonl")
        if whole:
            gather(table, file, sorted(out.glob("table-*-of-*.jsonl")))
        with progress("sensitivities (the first sample compiles)", -(-count // shard[1])) as advance:
            table = sensitivity(
                lambda bits: sample(alone.chosen(bits)),
                table,
                chosen,
                by=by,
                file=file,
                shard=shard,
                advance=advance,
            )
        if not whole:
            return {"table": str(file), "rows": len(table.rows)}
    groups = GROUP_METRICS if group_metrics is None else group_metrics
    groups = {} if cheap else {group: metric for group, metric in groups.items() if metric in chosen}
    seconds = layer_seconds(pipeline, recipe, bits, batch=batch) if measure == "seconds" else None
    options: dict[str, Any] = {
        "measure": measure,
        "metrics": groups,
        "error": error,
        "floors": floors,
        "seconds": seconds,
    }
    kinds: dict[str, dict[str, Any]] = {"milp": {}, "greedy": {"method": "greedy"}}
    if vary:
        kinds["varying"] = {"vary": True}
    recipes = {
        (each, kind): allocate(table, budget=each, **how, **options)
        for kind, how in kinds.items()
        for each in dict.fromkeys([budget, *budgets])
    }
    chosen_plan = (budget, "varying" if vary else "milp")
    best = recipes[chosen_plan]
    plans = {key: bits_of(table, found) for key, found in recipes.items()}
    plans |= {(float(b), "uniform"): dict.fromkeys(table.layers, b) for b in bits}
    judge = Judge(pipeline, variants, judges, seed, batch, progress, bounds)
    rows = []
    with progress("judging plans", len(plans)) as advance:
        for (each, method), found in plans.items():
            rows.append({"budget": each, "plan": method, **judge.figures(table, found, error)})
            advance(1)
    record = {
        "model": pipeline.facts["denoiser"]["model"],
        "budget": budget,
        "measure": measure,
        "recipe": recipe.name,
        "bits": list(bits),
        "bounds": list(bounds),
        "by": by,
        "error": error,
        "group_metrics": groups,
        "plan": best.to_json(),
        "plan_bits": plans[chosen_plan],
        "plans": rows,
        "sensitivities": [dataclasses.asdict(row) for row in table.rows],
        "groups": {path: layer.group for path, layer in table.layers.items()},
        "prompts": len(judge.conditions),
        "search_prompts": 0 if cheap else len(samples),
        "seed": seed,
        "steps": pipeline.steps,
        "device": jax.devices()[0].device_kind,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    best.save(out / "plan.json")
    if vary:
        recipes[budget, "milp"].save(out / "plan-same.json")
    write_json(out / "search.json", record)
    return record


def search_conditions(pipeline: Pipeline) -> list[str | int]:
    """What a search samples: conditions that no default condition is among."""
    if pipeline.facts["conditions"]["kind"] == "label":
        taken = {*default_conditions(pipeline), *calibration_conditions(pipeline)}
        fresh = [c for c in range(int(pipeline.facts["conditions"]["classes"])) if c not in taken]
        spread: list[str | int] = [*fresh[:: max(1, len(fresh) // SEARCHED)]]
        return spread[:SEARCHED] or default_conditions(pipeline)
    return list(packaged_prompts("search" if pipeline.frames is None else "search-video"))


def result_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The judged plans of a search, one flat row each."""
    shared = {
        name: record[name]
        for name in ("recipe", "group_metrics", "prompts", "seed", "steps", "device", "date", "versions")
    }
    return [{**row, **shared} for row in record["plans"]]


def _statistics(
    pipeline: Pipeline, recipe: Recipe, out: Path, seed: int, batch: int, progress: Progress
) -> Stats:
    if not recipe.needs_stats:
        return {}
    samples = calibration_conditions(pipeline)
    with progress("calibrating", len(samples)) as advance:
        return calibrate(
            pipeline, samples, recipe, texts=calibration_texts(pipeline), seed=seed, batch=batch,
            file=out / "statistics.safetensors", advance=advance,
        )  # fmt: skip


def _empty(
    pipeline: Pipeline,
    recipe: Recipe,
    variants: Variants,
    bits: tuple[int, ...],
    bounds: tuple[int, ...],
    by: str,
    conditions: list[str | int],
    seed: int,
    batch: int,
    metrics: list[str],
) -> Table:
    """The table without rows, and with all that a run that goes on must share."""
    weights = pipeline.denoiser.weights()
    patterns = plugins.find("viditq_jax.models", pipeline.facts["denoiser"]["model"]).GROUPS

    def group(path: str) -> str:
        named = (name for name, each in patterns.items() if matches(each, path))
        return next(named, VISUAL)

    layers = {
        path: Layer(
            math.prod(weights[path].shape), group(path), {b: variants.stored_bytes(path, b) for b in bits}
        )
        for path in variants.layers
    }
    facts = {
        "by": by,
        "conditions": [str(condition) for condition in conditions],
        "seed": seed,
        "batch": batch,
        "metrics": metrics,
        "sampler": pipeline.facts["sampler"],
        "guidance": pipeline.facts["guidance"],
        "weights": fingerprint(pipeline.nets()),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    if bounds:
        index = pipeline.plan(bounds=bounds).range_index()
        facts["shares"] = [float(np.mean(index == r)) for r in range(len(bounds) + 1)]
    return Table(recipe, bits, layers, bounds=bounds, facts=facts)
