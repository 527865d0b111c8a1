"""Measures of pictures, one a file; each streams: `empty`, `update`, `merge`, `finish`."""

from collections.abc import Sequence
from pathlib import Path

from viditq_jax import plugins
from viditq_jax.generate import Manifest

PAIRED = ("psnr", "ssim")


def evaluate(
    out: str | Path, metrics: Sequence[str] = PAIRED, *, reference: str | Path | None = None
) -> dict[str, float]:
    """The metrics of the pictures in `out`, each under its name with its unit, as in "psnr_db".

    reference: a folder with pictures of the same conditions and seeds; metrics that compare pairs need it.
    Raises ValueError if the two folders do not hold the same samples, and LookupError for an unknown metric.
    """
    found = {name: plugins.find("viditq_jax.evaluate", name) for name in metrics}
    ours = Manifest.read(out)
    if reference is None:
        raise ValueError(
            f"{', '.join(metrics)} compare with reference pictures; give their folder as reference."
        )
    theirs = Manifest.read(reference)
    same = [(e["index"], e["condition"]) for e in ours.entries] == [
        (e["index"], e["condition"]) for e in theirs.entries
    ]
    if not same or not ours.entries or ours.settings["seed"] != theirs.settings["seed"]:
        raise ValueError(
            f"{out} and {reference} do not hold the same conditions and seed; generate both with the same "
            f"prompts and seed."
        )
    states = {name: module.METRIC.empty() for name, module in found.items()}
    for picture, expected in zip(ours.images(), theirs.images(), strict=True):
        if picture.shape != expected.shape:
            raise ValueError(
                f"{out} has pictures of {picture.shape[:2]} pixels, {reference} of {expected.shape[:2]}; "
                f"generate both at the same size."
            )
        states = {name: found[name].METRIC.update(state, picture, expected) for name, state in states.items()}
    results = {}
    for name, state in states.items():
        unit = found[name].UNIT
        results[f"{name}_{unit}" if unit else name] = found[name].METRIC.finish(state)
    return results
