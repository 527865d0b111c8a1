"""Benchmarks: ops and whole models against jitted floats on the same device in the same run, as JSON records.

    ops-<device>.json         each op, case and implementation; `cases.py` says what, `ops.py` how
    pipeline-<device>.json    a block, a step, a loop, pictures; `models.py` says of what, `pipelines.py` how

Both begin with the device, its versions, the date, and the ceilings that were measured in the same run. A
record is written anew after each case, so that what was measured outlives whatever comes after.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pallas_kernels import tuning
from viditq_jax.bench import attention, block, models, tune
from viditq_jax.bench.block import Rivals
from viditq_jax.bench.cases import Case, cases
from viditq_jax.bench.device import ceilings, header, on_cpu
from viditq_jax.bench.models import Workload
from viditq_jax.bench.ops import bench_case
from viditq_jax.bench.pipelines import bench_workload, measured_peak
from viditq_jax.compare import Progress, silent
from viditq_jax.files import write_json

PARTS = ("block", "ops", "pipeline")  # in the order in which they run; a block tells most in least time
RECIPES = ("w8a8", "w8a8-dynamic", "w4a8")
_CPU_ROWS = 1024  # a layer's rows on a CPU at most: larger batches take as much longer as they are larger
_OPS_SHARE = 0.7  # ops end by this part of the time limit, where pipelines follow

Record = dict[str, Any]
# A name; and what measures, and puts into the record what it found.
Job = tuple[str, Callable[[Record], None]]


def bench(
    out: str | Path = "runs/bench",
    *,
    parts: Sequence[str] = PARTS,
    recipes: Sequence[str] = RECIPES,
    quick: bool = False,
    full_sizes: bool | None = None,
    tuned: bool = False,
    rivals: Rivals | None = None,
    limit_s: float | None = None,
    progress: Progress = silent,
) -> dict[str, Record]:
    """Measure, and write the records into the folder `out`; they are the result, by the name of their file.

    parts: of PARTS. recipes: packaged names or files that fit the packaged model.
    quick: the block, the ops of one model, and pictures of the packaged model under the first recipe, with
    fewer samples; within 5 minutes on two CPU cores.
    full_sizes: whole models of published sizes too; on an accelerator that is not quick where not given.
    tuned: measure tile sizes first, and use them; keep the speed of ops for this device.
    rivals: other libraries on the same block, see `benchmarks/rivals.py`.
    limit_s: no case begins later. A case that had no time left or failed is in the record under "left_out".
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"there is no part {', '.join(unknown)}; choose of {', '.join(PARTS)}.")
    if tuned and "ops" not in parts:
        raise ValueError("tile sizes are measured on the cases of ops; add this part, or do not tune.")
    started = time.monotonic()
    limit_s = (240.0 if quick else math.inf) if limit_s is None else limit_s
    samples, seconds = (10, 2.0) if quick else (30, 15.0)
    shared = header() | {"ceilings": ceilings(samples=max(5, samples // 2))}
    shared["settings"] = {"quick": quick, "samples": samples, "seconds_a_case": seconds}
    records: dict[str, Record] = {}

    def run(kind: str, jobs: Sequence[Job], until: float) -> None:
        name = f"{kind}-{tuning.device_name()}.json"
        record = records.setdefault(name, {**shared, "left_out": {}, "rows": []})
        with progress(f"{kind} benchmarks", len(jobs)) as advance:
            for case, job in jobs:
                if time.monotonic() - started > until:
                    record["left_out"][case] = "no time was left"
                else:
                    _run(case, job, record)
                write_json(Path(out) / name, record)
                advance(1)

    chosen = cases(quick=quick, most_rows=_CPU_ROWS if on_cpu() else None) if "ops" in parts else []
    if tuned:
        with progress("tuning tile sizes", len(chosen)) as advance:
            tune.tune(chosen, tune.tuned_file(), samples=samples, seconds=seconds, advance=advance)
    if "block" in parts:
        run("pipeline", [_block_job(recipes, rivals, samples, 3 * seconds)], limit_s)
    if "ops" in parts:
        jobs = _ops_jobs(chosen, quick, samples, seconds)
        run("ops", jobs, limit_s * (_OPS_SHARE if "pipeline" in parts else 1))
    if tuned:
        tune.keep_speeds(records[f"ops-{tuning.device_name()}.json"], tune.tuned_file())
    if "pipeline" in parts:
        full = not (quick or on_cpu()) if full_sizes is None else full_sizes
        run("pipeline", _pipeline_jobs(recipes, quick, full, samples, 3 * seconds), limit_s)
    return records


def _run(case: str, job: Callable[[Record], None], record: Record) -> None:
    """One case; its failure must not cost the others."""
    try:
        job(record)
    except Exception as error:  # whatever a compiler raises, or too little memory
        text = " ".join(str(error).split())[:300]
        record["left_out"][case] = f"failed: {type(error).__name__}: {text}"


def _ops_jobs(chosen: Sequence[Case], quick: bool, samples: int, seconds: float) -> list[Job]:
    """Ops in the order of the cases, then attention."""
    effort: Any = {"samples": samples, "seconds": seconds}

    def op(case: Case) -> Job:
        name = f"{case.op}, {case.name}"
        return name, lambda record: _add(record, name, bench_case(case, record["ceilings"], **effort))

    def attend(size: int) -> Job:
        name = attention.case_name(size)
        measure = attention.bench_attention
        return name, lambda record: _add(record, name, measure(size, record["ceilings"], **effort))

    sizes = attention.HEAD_SIZES[:1] if quick else attention.HEAD_SIZES
    return [*map(op, chosen), *map(attend, sizes)]


def _add(record: Record, case: str, found: tuple[list[Record], dict[str, str]]) -> None:
    rows, left_out = found
    record["rows"] += rows
    record["left_out"] |= {f"{case}, {name}": why for name, why in left_out.items()}


def _block_job(recipes: Sequence[str], rivals: Rivals | None, samples: int, seconds: float) -> Job:
    def measure(record: Record) -> None:
        effort: Any = {"samples": samples, "seconds": seconds}
        found = block.bench_block(recipes, record["ceilings"], **effort, rivals=rivals)
        _add(record, block.CASE, found)

    return block.CASE, measure


def _pipeline_jobs(
    recipes: Sequence[str], quick: bool, full_sizes: bool, samples: int, seconds: float
) -> list[Job]:
    """Full sizes where they are wanted, the first with its loop and its peak memory; the packaged model.

    quick: of the packaged model alone, pictures under the first recipe alone; half of the time is to compile.
    """

    def whole(workload: Workload, *parts: str, of: Sequence[str] = recipes) -> Job:
        def measure(record: Record) -> None:
            effort: Any = {"samples": samples, "seconds": seconds}
            record["rows"] += bench_workload(workload, of, record["ceilings"], parts=parts, **effort)

        return workload.name, measure

    def peaks(workload: Workload) -> Job:
        def measure(record: Record) -> None:
            for row in record["rows"]:
                if row["case"] == f"{workload.name}, step":
                    row["peak_bytes"] = measured_peak(workload, row["recipe"])

        return f"{workload.name}, peak memory", measure

    packaged = whole(models.DEFAULT, "step", "loop", "pictures")
    if quick:
        packaged = whole(models.DEFAULT, "pictures", of=recipes[:1])
    if not full_sizes:
        return [packaged]
    first, *others = models.FULL_SIZES
    steps = [whole(each, "step") for each in others]
    return [whole(first, "step", "loop"), peaks(first), *steps, packaged]
