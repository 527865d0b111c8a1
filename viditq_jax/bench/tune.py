"""Tile sizes and speeds of this device: all that a kernel offers, the best kept in `pallas_kernels/tuned`.

An implementation that defines `candidates` is measured; see `pallas_kernels.tuning`.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from pallas_kernels import dispatch, measured, tuning
from viditq_jax import plugins
from viditq_jax.bench.cases import Case, Compute, Operands
from viditq_jax.bench.device import header
from viditq_jax.bench.ops import attempt, drawn_pool
from viditq_jax.bench.timing import in_a_row, interleaved
from viditq_jax.files import write_json


def tuned_file() -> Path:
    """Where the tiles of this device are looked for."""
    folder = Path(str(resources.files("pallas_kernels")))
    return folder / "tuned" / f"{tuning.device_name()}.json"


def tune(
    cases: Sequence[Case],
    file: Path,
    *,
    samples: int,
    seconds: float,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Measure all candidates on all cases, and write the best beside what the file holds of other shapes.

    file: `tuned_file()` for the library to use it. Entries of another version of a kernel are dropped.
    samples, seconds: of a case, as `interleaved` has them. Returns what the file then holds.
    """
    facts = header()
    table = _held(file)
    for case in cases:
        for name in dispatch.implementations(case.op):
            module = plugins.find(f"pallas_kernels.{case.op}", name)
            if not hasattr(module, "candidates"):
                continue
            found = _best(case, name, module, samples=samples, seconds=seconds)
            if found is None:
                continue
            key, entry = found
            kernel, digest = f"{case.op}/{name}", tuning.kernel_hash(case.op, name)
            held = table["kernels"].get(kernel, {})
            entries = held["entries"] if held.get("hash") == digest else {}
            table["kernels"][kernel] = {"hash": digest, "entries": {**entries, key: entry}}
            _write(file, table, facts)
        advance(1)
    tuning.table.cache_clear()
    return table


def keep_speeds(record: Mapping[str, Any], file: Path) -> None:
    """The times of an ops record into the table of the device, in the place of those it had."""
    table = _held(file)
    table["speeds"] = {**table.get("speeds", {}), **measured.compact(record["rows"])}
    _write(file, table, record)
    tuning.table.cache_clear()
    measured.speeds.cache_clear()


def _held(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"kernels": {}}


def _write(file: Path, table: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """The table, with where and when it was measured."""
    table |= {name: facts[name] for name in ("device", "name", "date", "versions")}
    write_json(file, table, sort_keys=True)


def _best(
    case: Case, name: str, module: Any, *, samples: int, seconds: float
) -> tuple[str, dict[str, Any]] | None:
    """The key and the entry of this case; None where the implementation does not take it."""
    drawn = drawn_pool(case)
    pool = [jax.jit(case.encode)(each) for each in drawn]
    args, options = _whole_arguments(case, pool[0])
    if module.unsupported(*args, **options) is not None:
        return None
    choice: tuning.Choice = module.candidates(*args, **options)
    half = [jax.tree.map(lambda a: a.astype("bfloat16"), each) for each in drawn]
    works = {"bfloat16": in_a_row(case.plain, half)}
    failed = {}
    for i, tiles in enumerate(choice.candidates):
        outcome = attempt(_with_tiles(case, module, tiles), pool)
        if isinstance(outcome, str):  # too much shared memory, say, which only the compiler knows
            failed[json.dumps(tuning.plain(tiles))] = outcome
        else:
            works[str(i)], _ = outcome
    if len(works) == 1:
        raise RuntimeError(f"{case.op}/{name}, {case.name}: no candidate compiled: {failed}")
    times = interleaved(works, samples=samples, seconds=seconds)
    floats = times.pop("bfloat16")
    best = min(times, key=lambda label: times[label].median_s)
    entry = {
        "tiles": tuning.plain(choice.candidates[int(best)]),
        "median_s": times[best].to_json()["median_s"],
        "bfloat16_median_s": floats.to_json()["median_s"],
        "heuristic_median_s": times["0"].to_json()["median_s"] if "0" in times else None,
        "candidates": len(times),
        "failed": failed,
    }
    return tuning.key(choice.facts), entry


def _whole_arguments(case: Case, encoded: Operands) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What an implementation is given: the arguments of the case, and the defaults of the rest."""
    args, options = case.arguments(encoded)
    bound = inspect.signature(case.function).bind(*args, **options)
    bound.apply_defaults()
    return bound.args, {key: value for key, value in bound.kwargs.items() if key != "implementation"}


def _with_tiles(case: Case, module: Any, tiles: Any) -> Compute:
    def compute(encoded: Operands) -> Any:
        args, options = _whole_arguments(case, encoded)
        return module.run(*args, **options, tiles=tiles)

    return compute
