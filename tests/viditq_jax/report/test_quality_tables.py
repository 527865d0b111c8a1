"""Figures with intervals, as tables say them."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.viditq_jax.report.test_report import run  # noqa: F401
from viditq_jax.report import write_report
from viditq_jax.report.quality import quality_rows, quality_section, verdicts


def figure(value: float) -> dict[str, float]:
    return {"value": float(value), "low": value - 0.5, "high": value + 0.5}


def worse(value: float, verdict: str) -> dict[str, Any]:
    return {**figure(value), "below_1_percent": verdict}


RECORD: dict[str, Any] = {
    "pictures": 64, "prompts": 16, "steps": 20, "guidance": 4.5, "resamples": 300,
    "date": "2026-01-01", "device_name": "a CPU, 1 thread", "versions": {"jax": "0.10.2"},
    "reference": "float", "baseline": "float", "left_out": {},
    "variants": {
        "float": {"fid_to_real": figure(10), "perceptual_to_real": figure(0.2), "alignment": figure(40)},
        "w8a8": {
            "fid_to_real": figure(10), "fid_to_reference": figure(0.7), "perceptual_to_real": figure(0.2),
            "perceptual_to_reference": figure(0.01), "perceptual_share_percent": figure(2.5),
            "alignment": figure(40),
            "degradation_percent": {
                "fid_to_real": worse(0.8, "undecided"), "perceptual_to_real": worse(0.1, "yes"),
                "alignment": worse(3, "no"),
            },
        },
    },
}  # fmt: skip


def test_a_row_has_every_figure_with_its_interval() -> None:
    head, rows = quality_rows(RECORD)
    assert all(len(row) == len(head) for row in rows)
    w8a8 = dict(zip(head, rows[1], strict=True))
    assert w8a8["FID to the reference"] == "0.700 [0.200, 1.200]"
    assert w8a8["FID worse by"] == "0.80% [0.30, 1.30]"
    assert dict(zip(head, rows[0], strict=True))["FID worse by"] == ""


def test_verdicts_are_told_as_the_intervals_say() -> None:
    (line,) = verdicts(RECORD)
    assert line == (
        "w8a8: FID may be worse by more or less than 1%: its interval holds 1%; perceptual is worse by less "
        "than 1%, if at all; alignment is worse by 1% or more."
    )
    section = quality_section(RECORD)
    assert "64 pictures a variant, 16 packaged prompts of 4 each" in section
    assert f"- {line}" in section
    assert "| `w8a8` |" in section


@pytest.mark.parametrize("few", [False, True])
def test_the_page_shows_quality_and_what_was_left_out(run: Path, few: bool) -> None:  # noqa: F811
    file = run / "metrics.json"
    record = copy.deepcopy(RECORD)
    if few:
        record["left_out"] = {"fid": "needs more than 48 pictures"}
        for variant in record["variants"].values():
            variant.pop("fid_to_real")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quality": record}))
    page = write_report(run)[1].read_text()
    assert "Quality of many pictures" in page
    assert "2.50 [2.00, 3.00]" in page
    assert ("Left out: fid" in page) is few
    assert "w8a8: FID" in page or few
