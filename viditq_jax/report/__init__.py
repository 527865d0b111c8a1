"""Records and pictures of a run as one picture grid and one HTML page. It reads files and imports nothing of
ours.

A run is a folder with `metrics.json` (see `read_run`) and one folder of pictures a variant.
"""

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_LABEL_HEIGHT = 18
_GAP = 4


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report shows: the records, and each variant's pictures in the order of the conditions."""

    records: dict[str, Any]
    conditions: list[str]
    pictures: dict[str, list[np.ndarray]]


def read_run(folder: str | Path) -> Run:
    """Read a run folder. Raises ValueError that names what is missing."""
    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise ValueError(
            f"{folder} has no metrics.json; give a run folder, such as the one that `make demo` writes."
        )
    try:
        return _read(folder)
    except (LookupError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder} is damaged ({type(error).__name__}: {error}); make the run again."
        ) from error


def _read(folder: Path) -> Run:
    records = json.loads((folder / "metrics.json").read_text())
    pictures: dict[str, list[np.ndarray]] = {}
    conditions: list[str] = []
    for variant, record in records["variants"].items():
        manifest = folder / record["pictures"] / "manifest.jsonl"
        if not manifest.is_file():
            raise ValueError(f"{folder}: variant {variant!r} has no {manifest}; generate its pictures again.")
        entries = sorted(map(json.loads, manifest.read_text().splitlines()), key=lambda entry: entry["index"])
        conditions = [str(entry["condition"]) for entry in entries]
        pictures[variant] = [
            np.asarray(Image.open(manifest.parent / entry["file"]).convert("RGB")) for entry in entries
        ]
    counts = {variant: len(each) for variant, each in pictures.items()}
    if not conditions or set(counts.values()) != {len(conditions)}:
        raise ValueError(f"{folder}: variants need the same pictures, found {counts or 'no variant'}.")
    return Run(records, conditions, pictures)


def grid(run: Run, *, scale: int = 1) -> Image.Image:
    """One picture: a column a variant, a row a condition. scale: whole-number enlargement of small
    pictures.
    """
    font = ImageFont.load_default(13)
    first = next(iter(run.pictures.values()))
    height, width = (side * scale for side in first[0].shape[:2])
    left = 8 + int(max(font.getlength(text) for text in run.conditions))
    cell = max(width, *(int(font.getlength(name)) + 4 for name in run.pictures)) + _GAP
    canvas = Image.new(
        "RGB",
        (left + cell * len(run.pictures), _LABEL_HEIGHT + (height + _GAP) * len(run.conditions)),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    for column, (variant, pictures) in enumerate(run.pictures.items()):
        x = left + column * cell
        draw.text((x, 1), variant, fill="black", font=font)
        for row, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(tile, (x, _LABEL_HEIGHT + row * (height + _GAP)))
    for row, text in enumerate(run.conditions):
        draw.text((4, _LABEL_HEIGHT + row * (height + _GAP) + height // 2 - 8), text, fill="black", font=font)
    return canvas


def html(run: Run) -> str:
    """The page: summary table, what each recipe does and why, and all pictures, self-contained."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("viditq_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["megabytes"] = lambda count: f"{count / 1e6:.2f} MB"
    rows = [
        {
            "condition": text,
            "cells": {name: _data_uri(pictures[i]) for name, pictures in run.pictures.items()},
        }
        for i, text in enumerate(run.conditions)
    ]
    try:
        return environment.get_template("report.html").render(records=run.records, rows=rows)
    except jinja2.UndefinedError as error:
        raise ValueError(f"metrics.json lacks what the page shows: {error}; make the run again.") from error


def write_report(folder: str | Path) -> tuple[Path, Path]:
    """Write `grid.png` and `report.html` into a run folder; their paths."""
    folder = Path(folder)
    run = read_run(folder)
    side = next(iter(run.pictures.values()))[0].shape[1]
    grid(run, scale=max(1, 128 // side)).save(folder / "grid.png")
    (folder / "report.html").write_text(html(run))
    return folder / "grid.png", folder / "report.html"


def _data_uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
