"""Tables of recipes in markdown, from the rows of `viditq evaluate --recipes all --record FILE`."""

from collections.abc import Mapping, Sequence
from typing import Any

from viditq_jax.report.markdown import markdown_table

# As readers look for them: 8 bits, other formats, 4 bits by what they reach; unknown ones follow by name.
ORDER = (
    "w8a8", "w8a8-fast", "w8a8-dynamic", "smoothquant-w8a8", "quarot-w8a8", "naive-static-w8a8", "ptqd-w8a8",
    "q-diffusion-w8a8", "fp8", "w6a6", "w4a8-plus", "w4a8", "w4a8-balanced", "w4a8-mp", "w4a8-mp-timestep",
    "w4a8-timestep", "w4a8-group", "w4a8-naive", "smoothquant-w4a8", "quarot-w4a8", "naive-static-w4a8",
    "ptqd-w4a8", "q-diffusion-w4a8", "w4a4-plus",
)  # fmt: skip
_QUALITY = (("psnr_db", 1), ("ssim", 3), ("latent_rel_l2", 3))
_MOTION = (
    ("frame_consistency", 3), ("flicker_levels", 2), ("warping_error_levels", 2), ("motion_error_px", 2),
)  # fmt: skip

Row = Mapping[str, Any]


def picture_table(rows: Sequence[Row]) -> str:
    """Each recipe on the model, and on its twin with planted outliers."""
    titles = ("PSNR, dB", "SSIM", "latent error", "with outliers: PSNR", "SSIM", "latent error")
    plain, stressed = _by_recipe(rows, "default"), _by_recipe(rows, "stressed")
    lines = [
        [f"`{name}`", *_cells(plain[name], _QUALITY), *_cells(stressed[name], _QUALITY), _bytes(plain[name])]
        for name in _ordered(plain)
    ]
    return markdown_table(("recipe", *titles, "linear weights"), lines)


def video_table(rows: Sequence[Row]) -> str:
    """Each recipe on the video model, with the temporal measures; the float video has a line of its own."""
    titles = (
        "PSNR, dB", "SSIM", "latent error", "frame consistency", "flicker", "warping error",
        "motion error, px",
    )  # fmt: skip
    found = _by_recipe(rows, "default-video")
    lines = [
        [f"`{name}`", *_cells(found[name], (*_QUALITY, *_MOTION)), _bytes(found[name])]
        for name in ("float", *_ordered(found))
    ]
    return markdown_table(("recipe", *titles, "linear weights"), lines)


def _by_recipe(rows: Sequence[Row], model: str) -> dict[str, Row]:
    return {row["recipe"]: row for row in rows if row["model"] == model}


def _ordered(found: Mapping[str, Row]) -> list[str]:
    """The quantized ones."""
    names = [name for name, row in found.items() if name != "float" and "weight_bytes_vs_bfloat16" in row]
    return sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _cells(row: Row, figures: Sequence[tuple[str, int]]) -> list[str]:
    return ["" if row.get(name) is None else f"{row[name]:.{digits}f}" for name, digits in figures]


def _bytes(row: Row) -> str:
    return f"{row['weight_bytes_vs_bfloat16']:.3f}x"
