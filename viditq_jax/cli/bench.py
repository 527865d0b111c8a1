"""Measure speed and memory of kernels and models against bfloat16 and float32: viditq bench --quick

Everything is timed in turn in one run, on this machine's device, and written as JSON records that say the
device, the versions and what the device reaches at best. --tune also measures the tile sizes of kernels and
keeps the best for this device, and the speeds by which ops are chosen and slow layers are named. With
--rivals benchmarks/rivals.py, torch and qwix run the same block.
"""

import dataclasses
import runpy
from pathlib import Path
from typing import Any

from viditq_jax.bench import PARTS, RECIPES, bench
from viditq_jax.cli._common import bar
from viditq_jax.report.speed import summary


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq bench`."""

    quick: bool = False
    """Fewer cases and samples, and one recipe of the packaged model: under 5 minutes on two CPU cores."""
    parts: tuple[str, ...] = PARTS
    """What to measure: one transformer block, single ops, whole models."""
    recipes: tuple[str, ...] = RECIPES
    """Recipes to time, packaged names or files."""
    out: Path = Path("runs/bench")
    """The folder of the records."""
    full_sizes: bool | None = None
    """Also whole models of published sizes with random weights; where not given, on an accelerator, unless
    --quick."""
    tune: bool = False
    """Measure the tile sizes of kernels first; the best, and the speed of ops, go to pallas_kernels/tuned."""
    rivals: Path | None = None
    """A Python file with other libraries to time on the same block."""
    limit: float | None = None
    """Seconds after which no further case begins; 240 with --quick where not given."""
    json: bool = False
    """Print the records as JSON."""


def run(options: Options) -> Any:
    """Measure, write, and say what came out."""
    rivals = None
    if options.rivals is not None:
        rivals = runpy.run_path(str(options.rivals)).get("rivals")
        if rivals is None:
            raise ValueError(f"{options.rivals} defines no function `rivals`; see benchmarks/rivals.py.")
    records = bench(
        options.out,
        parts=options.parts,
        recipes=options.recipes,
        quick=options.quick,
        full_sizes=options.full_sizes,
        tuned=options.tune,
        rivals=rivals,
        limit_s=options.limit,
        progress=bar,
    )
    if options.json:
        return records
    lines = [text for name, record in records.items() for text in (f"{options.out / name}", summary(record))]
    return "\n".join(lines)
