"""Measures of pictures and videos, one a file; each streams: `empty`, `update`, `merge`, `finish`.

A measure that says ALONE looks at no reference; one that says CAPTION looks at the prompt instead. One that
has `load` instead of METRIC needs weights, which it says under WEIGHTS: it is asked for as NAME=PLACE.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from viditq_jax import plugins
from viditq_jax.evaluate._bootstrap import Interval, bootstrap
from viditq_jax.generate import Manifest

__all__ = ["PAIRED", "TEMPORAL", "Interval", "bootstrap", "evaluate"]

PAIRED = ("psnr", "ssim")
TEMPORAL = ("frame_consistency", "flicker", "warping_error", "motion_error")  # of videos


def evaluate(
    out: str | Path, metrics: Sequence[str] = (), *, reference: str | Path | None = None
) -> dict[str, float]:
    """The metrics of the pictures or videos in `out`, each under its name with its unit, as in "psnr_db".

    metrics: by name; where none is named `PAIRED`, and for videos `TEMPORAL` too. One that needs weights is
        named with their folder on this machine, as "clip_score=FOLDER".
    reference: a folder with pictures of the same conditions and seeds; metrics that compare need it.
    Raises ValueError if the two folders do not hold the same samples or weights are missing, and LookupError
    for an unknown metric.
    """
    ours = Manifest.read(out)
    metrics = metrics or (PAIRED if ours.fps is None else (*PAIRED, *TEMPORAL))
    found, measures = {}, {}
    for asked in metrics:
        name, _, weights = asked.partition("=")
        found[name] = plugins.find("viditq_jax.evaluate", name)
        measures[name] = _measure(name, found[name], weights)
    captioned = {name for name, module in found.items() if getattr(module, "CAPTION", False)}
    compare = [n for n, module in found.items() if n not in captioned and not getattr(module, "ALONE", False)]
    if reference is None and compare:
        raise ValueError(
            f"{', '.join(compare)} compare with reference pictures; give their folder as reference."
        )
    reference = out if reference is None or not compare else reference
    theirs = Manifest.read(reference)
    same = [(e["index"], e["condition"]) for e in ours.entries] == [
        (e["index"], e["condition"]) for e in theirs.entries
    ]
    if not same or not ours.entries or ours.settings["seed"] != theirs.settings["seed"]:
        raise ValueError(
            f"{out} and {reference} do not hold the same conditions and seed; generate both with the same "
            f"prompts and seed."
        )
    states = {name: measure.empty() for name, measure in measures.items()}
    for entry, picture, expected in zip(ours.entries, ours.images(), theirs.images(), strict=True):
        if picture.shape != expected.shape:
            raise ValueError(
                f"{out} has pictures of {_size(picture)}, {reference} of {_size(expected)}; "
                f"generate both at the same size."
            )
        caption = str(entry["condition"])
        states = {
            name: measures[name].update(state, picture, caption if name in captioned else expected)
            for name, state in states.items()
        }
    results = {}
    for name, state in states.items():
        unit = found[name].UNIT
        results[f"{name}_{unit}" if unit else name] = measures[name].finish(state)
    return results


def _measure(name: str, module: ModuleType, weights: str) -> Any:
    """The metric of a module, by the weights where it needs some."""
    if hasattr(module, "load"):
        if not weights:
            raise ValueError(
                f"{name} needs {module.WEIGHTS}, and none is packaged or downloaded; give its place on this "
                f"machine, as {name}=PLACE."
            )
        return module.load(weights)
    if weights:
        raise ValueError(f"{name} takes no weights, got {weights!r}; ask for {name} alone.")
    return module.METRIC


def _size(sample: np.ndarray) -> str:
    frames = f"{len(sample)} frames of " if sample.ndim == 4 else ""
    return f"{frames}{sample.shape[-3]}x{sample.shape[-2]} pixels"
