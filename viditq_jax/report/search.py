"""Charts of a search: what each layer costs, and quality over size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from viditq_jax.files import parse_json
from viditq_jax.report.charts import BLOCK, STYLE, svg_uri
from viditq_jax.report.markdown import markdown_table

_PLANS = {
    "milp": ("#3b6fb6", "o"),
    "greedy": ("#d1703c", "s"),
    "varying": ("#4b9b6b", "^"),
    "uniform": ("0.45", "D"),
}
_LAYERS = 10_000  # measured, over all ranges and bits: more are of no model, and take minutes to draw
_FLOOR = 1e-3  # of the largest: what is below has the same colour


def search_section(folder: str | Path) -> dict[str, Any]:
    """What the page shows of a search: facts of the record, rows of the judged plans, and the two charts.

    Raises ValueError for a folder without a finished search, and for a record that is damaged.
    """
    file = Path(folder) / "search.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no search.json; give the folder of a `viditq search` that is through."
        )
    try:
        record = parse_json(file.read_text(encoding="utf-8"))
        if (count := sum(len(row["layers"]) for row in record["sensitivities"])) > _LAYERS:
            raise ValueError(f"it measured {count} layers")
        plans = [
            {
                "budget": f"{row['budget']:g}",
                "plan": str(row["plan"]),
                "bits": f"{row['average_bits']:.2f}",
                "size": f"{row['weight_bytes'] / 1e6:.2f} MB",
                "psnr": "inf" if row["psnr_db"] is None else f"{row['psnr_db']:.2f} dB",
                "latents": f"{row['latent_rel_l2']:.4f}",
            }
            for row in sorted(record["plans"], key=lambda row: (row["average_bits"], row["plan"]))
        ]
        facts = ("measure", "recipe", "prompts", "search_prompts", "device", "date")
        return {
            **{name: str(record[name]) for name in facts},
            "budget": f"{record['budget']:g}",
            "plans": plans,
            "sensitivities": svg_uri(sensitivity_chart(record)),
            "pareto": svg_uri(pareto_chart(record)),
        }
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}); search again.") from error


def sensitivity_chart(record: Mapping[str, Any]) -> Figure:
    """A map of what fewest bits cost, block by kind of layer, a map a denoising range; marked: more bits."""
    rows = [row for row in record["sensitivities"] if row["bits"] == min(record["bits"])]
    ranges = sorted({row["range"] for row in rows}, key=lambda r: -1 if r is None else r)
    places = {path: _place(path) for row in rows for path in row["layers"]}
    blocks = sorted({block for block, _ in places.values()})
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))
    values = np.full((len(ranges), len(kinds), len(blocks)), np.nan)
    for row in rows:
        for path in row["layers"]:
            block, kind = places[path]
            cell = ranges.index(row["range"]), kinds.index(kind), blocks.index(block)
            values[cell] = row["values"][record["error"]]
    most = float(np.nanmax(values)) or 1.0
    with matplotlib.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        size = (1.6 + max(3.2, 0.38 * len(blocks)) * len(ranges) + 1.2, 1.2 + 0.34 * len(kinds))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(ranges), squeeze=False, sharey=True)[0]
        norm = LogNorm(max(np.nanmin(values), most * _FLOOR), most)
        for axis, r, each in zip(axes, ranges, values, strict=True):
            image = axis.imshow(each, cmap="viridis", norm=norm, aspect="auto")
            axis.set_xticks(range(len(blocks)), [str(block) for block in blocks])
            axis.set_yticks(range(len(kinds)), kinds)
            axis.set_xlabel("block")
            axis.set_title(_range_name(record["bounds"], r), fontsize=9)
            for path, bits in record["plan_bits"].items():
                here = bits if isinstance(bits, int) else bits[ranges.index(r)]
                if here > min(record["bits"]):
                    block, kind = places[path]
                    axis.plot(blocks.index(block), kinds.index(kind), "o", color="white", markersize=5,
                              markeredgecolor="black", markeredgewidth=0.6)  # fmt: skip
        bar = figure.colorbar(image, ax=list(axes))
        bar.set_label(
            f"squared relative error of the latents\nwith {min(record['bits'])} bits in this layer alone"
        )
        figure.suptitle(
            f"Dots: more bits in the plan of {record['budget']:g} {record['measure']}", fontsize=9
        )
    return figure


def pareto_chart(record: Mapping[str, Any]) -> Figure:
    """Quality over size of all plans that were judged: decibels of the pictures, and error of the latents."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 3.4), layout="constrained")
        for axis, name, label in zip(
            figure.subplots(1, 2),
            ("psnr_db", "latent_rel_l2"),
            ("PSNR against float, dB", "relative L2 of the latents"),
            strict=True,
        ):
            for plan, (colour, marker) in _PLANS.items():
                found = sorted(
                    (row["average_bits"], row[name])
                    for row in record["plans"]
                    if row["plan"] == plan and row[name] is not None
                )
                line = "none" if plan == "uniform" else "-"  # nothing lies between its widths
                if not found:
                    continue
                axis.plot(*np.array(found).T, linestyle=line, marker=marker, color=colour, label=plan)
            axis.set_xlabel("average bits of the weights")
            axis.set_ylabel(label)
            axis.grid(True, color="0.9")
            axis.legend(frameon=False)
    return figure


def plan_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The judged plans in markdown: a line a budget, PSNR and latent error of each kind of plan."""
    kinds = [kind for kind in _PLANS if any(row["plan"] == kind for row in rows)]
    titles = [title for kind in kinds for title in (f"{kind}: PSNR, dB", "latent error")]
    lines = []
    for budget in sorted({row["budget"] for row in rows}):
        found = {row["plan"]: row for row in rows if row["budget"] == budget}
        size = next(iter(found.values()))["weight_bytes"]
        cells = [f"{budget:g}", f"{size / 1e6:.2f}"]
        for kind in kinds:
            row = found.get(kind)
            cells += [f"{row['psnr_db']:.1f}", f"{row['latent_rel_l2']:.3f}"] if row else ["", ""]
        lines.append(cells)
    return markdown_table(("average bits", "MB", *titles), lines)


def _place(path: str) -> tuple[int, str]:
    """The block and the kind of a layer; layers outside blocks stand before the first."""
    match = BLOCK.fullmatch(path)
    return (int(match[1]), match[2]) if match else (-1, path)


def _range_name(bounds: list[int], r: int | None) -> str:
    if r is None:
        return "all denoising times"
    low = bounds[r - 1] if r else 0
    high = bounds[r] - 1 if r < len(bounds) else 999
    return f"times {low} to {high}"
