"""Charts of a run: drift over the steps, signal against noise of each layer, quality of each recipe.

Figures are built as objects, without pyplot and its global state.
"""

import base64
import io
import re
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from viditq_jax.report.run import Run

_BAND = 11  # pictures side by side
_BAR_COLOURS = ("#3b6fb6", "#d1703c", "#5b9a5b", "#8c6bb1")  # a model each
BLOCK = re.compile(r"blocks/(\d+)/(.+)")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "viditq",
}


def drift_chart(run: Run) -> Figure | None:
    """How far each variant's latents are from the float ones after each step; None if no variant tells."""
    models = [model for model in run.models if run.drifts(model)]
    if not models:
        return None
    labels = list(dict.fromkeys(label for model in models for label in run.drifts(model)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 0.6 + 3.1 * len(models)), layout="constrained")
        axes = figure.subplots(len(models), 2, squeeze=False)
        for row, model in zip(axes, models, strict=True):
            curves = run.drifts(model)
            floor = run.noise_floor(model).get("drift")
            for axis, distance in zip(row, (_relative_l2, _cosine_distance), strict=True):
                for label, drift in curves.items():
                    axis.plot(*distance(drift), **_line(labels.index(label)), label=label)
                if floor:
                    axis.plot(*distance(floor), color="0.45", linestyle=(0, (1, 1)), label="rounding alone")
                axis.set_yscale("log")
                axis.grid(True, which="major", color="0.9")
                axis.set_xlabel("denoising step")
                axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            row[0].set_ylabel("relative L2 of the latents")
            row[1].set_ylabel("1 - cosine of the latents")
            row[0].set_title(f"{model} model" if model else "", loc="left", fontweight="bold")
            order = sorted(curves, key=lambda label: -curves[label]["relative_l2"][-1])
            handles = dict(zip(*reversed(row[1].get_legend_handles_labels()), strict=True))
            shown = [*order, *(["rounding alone"] if floor else [])]
            row[1].legend(
                [handles[label] for label in shown],
                shown,
                loc="center left",
                bbox_to_anchor=(1.01, 0.5),
                frameon=False,
                fontsize=8,
            )
    return figure


def layers_chart(run: Run) -> Figure | None:
    """Signal against quantization noise of every layer, a map a variant; None if no variant tells."""
    maps = [
        (f"{label}, {model}" if model else label, _grid_of(run.layers(model)[label]))
        for label in dict.fromkeys(label for model in run.models for label in run.layers(model))
        for model in run.models
        if label in run.layers(model)
    ]
    if not maps:
        return None
    kinds = list(dict.fromkeys(kind for _, found in maps for kind, _ in found))
    depth = 1 + max(block for _, found in maps for _, block in found)
    columns = min(len(maps), 4 if depth <= 12 else len(run.models))
    rows = -(-len(maps) // columns)
    values = [value for _, found in maps for value in found.values()]
    low, high = min(values), max(max(values), min(values) + 1)
    with matplotlib.rc_context({**STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        size = (1.4 + columns * max(2.6, 0.4 * depth), 0.4 + rows * (0.7 + 0.24 * len(kinds)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for axis in axes.flat[len(maps) :]:
            axis.set_axis_off()
        for i, (axis, (title, found)) in enumerate(zip(axes.flat, maps, strict=False)):
            table = np.full((len(kinds), depth), np.nan)
            for (kind, block), value in found.items():
                table[kinds.index(kind), block] = value
            image = axis.imshow(table, cmap="viridis", vmin=low, vmax=high, aspect="auto")
            _numbers(axis, table, (low + high) / 2)
            axis.set_title(title, loc="left", fontsize=9)
            axis.set_yticks(range(len(kinds)), kinds if i % columns == 0 else [""] * len(kinds), fontsize=7)
            axis.set_xticks(range(depth), [str(block) for block in range(depth)], fontsize=7)
            axis.tick_params(length=0)
        figure.colorbar(image, ax=axes, label="signal to quantization noise, dB", location="top", aspect=60)
        figure.supxlabel("block", fontsize=9)
    return figure


def recipes_chart(run: Run, *, prompts: int = 1) -> Figure:
    """PSNR of every recipe on every model, and what they paint for the first conditions."""
    models = list(run.models)
    measured = {
        model: {
            label: run.records["variants"][name]["psnr_db"]
            for label, name in run.models[model].items()
            if run.records["variants"][name].get("psnr_db") is not None
        }
        for model in models
    }
    labels = list(dict.fromkeys(label for model in models for label in measured[model]))
    labels.sort(key=lambda label: -measured[models[-1]].get(label, 0.0))
    painted = list(dict.fromkeys(label for model in models for label in run.models[model]))
    painted.sort(key=lambda label: labels.index(label) if label in labels else -1)
    # A band holds a few of them, each with its pictures of every model below.
    bands = [painted[i : i + _BAND] for i in range(0, len(painted), _BAND)]
    lines = [
        (band, i, model)
        for band in bands
        for i in range(min(prompts, len(run.conditions)))
        for model in models
    ]
    bar_height = 0.9 + 0.17 * len(labels) * (len(models) + 0.4)
    strip_height = 0.9 * len(lines) + 0.35 * len(bands)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, bar_height + strip_height), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=(bar_height, strip_height))
        upper, lower = halves
        _bars(upper.subplots(), run, measured, labels)
        axes = lower.subplots(len(lines), len(bands[0]), squeeze=False)
        titled = set()
        for line, (band, i, model) in zip(axes, lines, strict=True):
            for axis in line:
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
            for axis, label in zip(line, band, strict=False):
                if label in run.models[model]:
                    axis.imshow(run.still(run.models[model][label], i), interpolation="nearest")
                if label not in titled:
                    axis.set_title("-\n".join(label.rsplit("-", 1)), fontsize=7)
                    titled.add(label)
            name = f"{run.conditions[i]}\n{model}" if model else run.conditions[i]
            line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def svg_uri(figure: Figure) -> str:
    """The figure as a data URI; equal figures give equal text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _relative_l2(drift: dict[str, list[float]]) -> tuple[list[int], list[float]]:
    values = drift["relative_l2"]
    return [*range(1, len(values) + 1)], values


def _cosine_distance(drift: dict[str, list[float]]) -> tuple[list[int], list[float]]:
    values = [max(1 - value, 1e-9) for value in drift["cosine"]]  # float32 cannot tell less from nothing
    return [*range(1, len(values) + 1)], values


def _line(index: int) -> dict[str, Any]:
    colours = matplotlib.color_sequences["tab10"]
    return {
        "color": colours[index % len(colours)],
        "linestyle": ("-", "--", "-.")[index // len(colours) % 3],
        "linewidth": 1.5,
    }


def _grid_of(layers: dict[str, dict[str, float]]) -> dict[tuple[str, int], float]:
    """The decibels by kind of layer and number of block; a layer outside of the blocks is in column 0,
    one without noise nowhere."""
    found = {}
    for path, record in layers.items():
        if record["sqnr_db"] is None:
            continue
        match = BLOCK.fullmatch(path)
        found[(match[2], int(match[1])) if match else (path, 0)] = record["sqnr_db"]
    return found


def _numbers(axis: Axes, table: np.ndarray, middle: float) -> None:
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axis.text(column, row, f"{round(value)}", ha="center", va="center", color=colour, fontsize=6.5)


def _bars(axis: Axes, run: Run, measured: dict[str, dict[str, float]], labels: list[str]) -> None:
    """Horizontal bars, the best recipe on top, with the noise floor of each model as a line."""
    thickness = 0.8 / len(measured)
    for i, (model, values) in enumerate(measured.items()):
        colour = _BAR_COLOURS[i % len(_BAR_COLOURS)]
        known = [(at, values[label]) for at, label in enumerate(labels) if label in values]
        places = [at - 0.4 + (i + 0.5) * thickness for at, _ in known]
        bars = axis.barh(
            places,
            [value for _, value in known],
            0.92 * thickness,
            color=colour,
            label=f"{model} model" if model else "quantized",
        )
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
        floor = run.noise_floor(model).get("psnr_db")
        if floor is not None:
            what = f"rounding alone, {model} model" if model else "rounding alone"
            axis.axvline(floor, color=colour, linestyle=":", linewidth=1.4, label=what)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.8)
    axis.set_xlabel("PSNR against the float pictures, dB")
    axis.tick_params(axis="y", length=0)
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8)
