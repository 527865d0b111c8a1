"""Draw a run as grid.png, recipes.png and a self-contained report.html: viditq report runs/demo

A run is a folder with metrics.json and the pictures of each variant, such as the one that `make demo` or
`viditq evaluate --recipes all` writes. With --fail-under the exit code is 1 if a variant is worse than asked:
viditq report runs/recipes --fail-under psnr_db=30 ssim=0.9
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.report import check_thresholds, parse_thresholds, read_run, write_report


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq report`."""

    run: Annotated[Path, tyro.conf.Positional] = Path("runs/demo")
    """The run folder."""
    fail_under: tuple[str, ...] = ()
    """Measures and the least that every variant must reach, as psnr_db=30."""
    search: Path | None = None
    """Folder of a `viditq search`, whose sensitivities and plans are shown too."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Draw, check, and say where the files are."""
    thresholds = parse_thresholds(options.fail_under)
    picture, page = write_report(options.run, search=options.search)
    check_thresholds(read_run(options.run).records, thresholds)
    files = {"grid": str(picture), "recipes": str(picture.with_name("recipes.png")), "report": str(page)}
    return files if options.json else "\n".join(files.values())
