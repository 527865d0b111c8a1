"""Compare pictures with reference pictures of the same prompts and seeds: viditq evaluate runs/generate-w8a8

Both folders are what `viditq generate` wrote.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.evaluate import PAIRED, evaluate


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq evaluate`."""

    out: Annotated[Path, tyro.conf.Positional] = Path("runs/generate-w8a8")
    """The pictures to judge."""
    reference: Path = Path("runs/generate")
    """The pictures to compare with."""
    metrics: tuple[str, ...] = PAIRED
    """Which measures, by name."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Measure and print."""
    results = evaluate(options.out, options.metrics, reference=options.reference)
    return (
        results if options.json else "\n".join(f"{name:<10} {value:.4f}" for name, value in results.items())
    )
