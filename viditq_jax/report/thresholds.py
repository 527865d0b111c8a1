"""Which variants of a run are worse than asked, so that a build can fail on them."""

import math
from collections.abc import Mapping
from typing import Any

LOWER_IS_BETTER = (
    "flicker_levels",
    "warping_error_levels",
    "motion_error_px",
    "latent_rel_l2",
    "weight_bytes",
    "bfloat16_weight_bytes",
    "weight_bytes_vs_bfloat16",
    "weight_disk_bytes",
    "artifact_bytes",
    "seconds_per_image",
    "seconds_to_quantize",
)


class BelowThresholdError(ValueError):
    """Some variants are worse than asked; the message lists them."""


def parse_thresholds(texts: tuple[str, ...]) -> dict[str, float]:
    """Thresholds from texts such as "psnr_db=30". Raises ValueError for another text."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
            if not math.isfinite(found[name]):
                raise ValueError(value)
        except ValueError:
            raise ValueError(
                f"{text!r} is no threshold; write a measure and a number, as psnr_db=30."
            ) from None
    return found


def check_thresholds(records: Mapping[str, Any], thresholds: Mapping[str, float]) -> None:
    """Raise BelowThresholdError if a variant is worse than a threshold, or lacks it; null is perfect.

    Sizes, times and distances must not be above the threshold, all others not below.
    Raises ValueError for a measure that no variant has.
    """
    variants = records["variants"]
    numbers = {
        name
        for record in variants.values()
        for name, value in record.items()
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    }
    if unknown := sorted(thresholds.keys() - numbers):
        raise ValueError(
            f"no variant has the measure {', '.join(unknown)}; this run has {', '.join(sorted(numbers))}."
        )
    worse = []
    for variant, record in variants.items():
        for name, limit in thresholds.items():
            if name not in record:
                worse.append(f"{variant}: {name} was not measured")
                continue
            value, lower = record[name], name in LOWER_IS_BETTER
            if value is not None and (value > limit if lower else value < limit):
                worse.append(f"{variant}: {name} {value:.4g} is {'above' if lower else 'below'} {limit:g}")
    if worse:
        bad = len({text.split(": ")[0] for text in worse})
        raise BelowThresholdError(
            f"{bad} of {len(variants)} variants are worse than asked: {'; '.join(worse)}."
        )
