"""Records and samples of a run as pictures and one HTML page. It reads files and knows no model.

What a run folder holds is in `report/run.py`.
"""

from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from viditq_jax.files import write_atomic, writing
from viditq_jax.report.charts import drift_chart, layers_chart, recipes_chart, svg_uri
from viditq_jax.report.quality import quality_rows, verdicts
from viditq_jax.report.run import Run, read_run
from viditq_jax.report.search import search_section
from viditq_jax.report.thresholds import BelowThresholdError, check_thresholds, parse_thresholds
from viditq_jax.video import contact_sheet, data_uri, png

__all__ = [
    "BelowThresholdError",
    "Run",
    "check_thresholds",
    "grid",
    "html",
    "parse_thresholds",
    "read_run",
    "strips",
    "write_report",
]

_LABEL_HEIGHT = 18
_GAP = 4
_TEMPORAL = {  # fields of records, and how tables call them
    "frame_consistency": "frames alike",
    "flicker_levels": "flicker, levels",
    "warping_error_levels": "warping error, levels",
    "motion_error_px": "motion error, pixels",
}
_SMALL = 128  # pixels a side, of pictures that the page enlarges
_STRIPS = 4  # conditions whose videos are also shown frame by frame


def grid(run: Run, *, scale: int = 1) -> Image.Image:
    """One picture: a column a variant, a row a condition, the models of a run one below the other.

    Of videos the frames in their middle; `strips` shows all.
    scale: whole-number enlargement of small pictures.
    """
    font = ImageFont.load_default(13)
    height, width = (side * scale for side in run.still(next(iter(run.pictures)), 0).shape[:2])
    left = 8 + int(max(font.getlength(text) for text in (*run.conditions, *run.models)))
    labels = [label for variants in run.models.values() for label in variants]
    cell = max(width, *(int(font.getlength(label)) + 4 for label in labels)) + _GAP
    band = _LABEL_HEIGHT + (height + _GAP) * len(run.conditions)
    columns = max(len(variants) for variants in run.models.values())
    canvas = Image.new("RGB", (left + cell * columns, band * len(run.models)), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (model, variants) in enumerate(run.models.items()):
        top = number * band
        draw.text((4, top + 1), model, fill="gray", font=font)
        for column, (label, variant) in enumerate(variants.items()):
            x = left + column * cell
            draw.text((x, top + 1), label, fill="black", font=font)
            for row in range(len(run.conditions)):
                picture = Image.fromarray(run.still(variant, row))
                tile = picture.resize((width, height), Image.Resampling.NEAREST)
                canvas.paste(tile, (x, top + _LABEL_HEIGHT + row * (height + _GAP)))
        for row, text in enumerate(run.conditions):
            y = top + _LABEL_HEIGHT + row * (height + _GAP) + height // 2 - 8
            draw.text((4, y), text, fill="black", font=font)
    return canvas


def strips(run: Run, i: int) -> Image.Image:
    """All variants of the video of condition i: a row a variant, a column a frame."""
    names = {
        f"{label}, {model}" if model else label: name
        for model, variants in run.models.items()
        for label, name in variants.items()
    }
    return contact_sheet([run.pictures[name][i] for name in names.values()], list(names))


def html(run: Run, search: str | Path | None = None) -> str:
    """The page: summary table, charts, what each recipe does and why, and all pictures, self-contained.

    search: folder of a search, whose sensitivities and plans are shown too.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("viditq_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["megabytes"] = lambda count: f"{count / 1e6:.2f} MB"
    rows = [
        {
            "condition": f"{text}, {model}" if model else text,
            "cells": {label: _cell(run.pictures[name][i], run.fps) for label, name in variants.items()},
        }
        for i, text in enumerate(run.conditions)
        for model, variants in run.models.items()
    ]
    shown = range(min(len(run.conditions), _STRIPS)) if run.fps else ()
    sheets = {run.conditions[i]: data_uri(np.asarray(strips(run, i))) for i in shown}
    beside = run.records.get("video", {})
    films = {label: _cell(sample, beside["fps"]) for label, sample in run.video.items()}
    recipes = {
        record.get("label", name): record["recipe"]
        for name, record in run.records["variants"].items()
        if record.get("recipe")
    }
    quality = None
    if record := run.records.get("quality"):
        head, cells = quality_rows(record)
        quality = {"head": head, "rows": cells, "verdicts": verdicts(record)}
    figures = {"drift": drift_chart(run), "layers": layers_chart(run)}
    charts = {name: svg_uri(figure) if figure else None for name, figure in figures.items()}
    try:
        return environment.get_template("report.html").render(
            run=run,
            records=run.records,
            rows=rows,
            recipes=recipes,
            charts=charts,
            sheets=sheets,
            films=films,
            small=run.still(next(iter(run.pictures)), 0).shape[1] < _SMALL,
            quality=quality,
            search=search_section(search) if search else None,
            layers=_layer_tables(run),
            temporal=_TEMPORAL,
        )
    except jinja2.UndefinedError as error:
        raise ValueError(f"metrics.json lacks what the page shows: {error}; make the run again.") from error


def write_report(folder: str | Path, *, search: str | Path | None = None) -> tuple[Path, Path]:
    """Write `grid.png`, `recipes.png` and `report.html` into a run folder; the paths of the first and last.

    Of videos also `strips.png`, the frames of the first condition as each variant paints them.
    recipes.png stands alone: the quality of every variant as bars, and the first condition as each paints it.
    search: as `html` has it.
    """
    folder = Path(folder)
    run = read_run(folder)
    page = html(run, search)
    side = run.still(next(iter(run.pictures)), 0).shape[1]
    if run.fps:
        write_atomic(folder / "strips.png", png(strips(run, 0)))
    write_atomic(folder / "grid.png", png(grid(run, scale=max(1, 128 // side))))
    with writing(folder / "recipes.png") as file:
        recipes_chart(run).savefig(file, format="png", dpi=130, metadata={"Software": None})
    write_atomic(folder / "report.html", page)
    return folder / "grid.png", folder / "report.html"


def _layer_tables(run: Run) -> dict[str, dict[str, Any]]:
    """For each model that tells, its variants and a row a layer: decibels of signal to noise."""
    tables = {}
    for model in run.models:
        if found := run.layers(model):
            paths = dict.fromkeys(path for layers in found.values() for path in layers)
            rows = {
                path: [layers.get(path, {}).get("sqnr_db") for layers in found.values()] for path in paths
            }
            tables[model] = {"variants": list(found), "rows": rows}
    return tables


def _cell(sample: np.ndarray, fps: float | None) -> dict[str, str | None]:
    """A picture, or a video that plays again and again and its frame in the middle; without loss.

    Animations do not keep time with each other, so that stills are what is laid one over the other.
    """
    still = None if fps is None else data_uri(sample[len(sample) // 2])
    return {"uri": data_uri(sample, fps), "still": still}
