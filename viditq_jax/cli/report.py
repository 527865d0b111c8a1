"""Draw a run as grid.png and a self-contained report.html: viditq report runs/demo

A run is a folder with metrics.json and the pictures of each variant, such as the one that `make demo` writes.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.report import write_report


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq report`."""

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    """The run folder."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Draw, and say where the files are."""
    picture, page = write_report(options.run)
    return {"grid": str(picture), "report": str(page)} if options.json else f"{picture}\n{page}"
