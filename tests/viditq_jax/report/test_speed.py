"""Tables of speed from records."""

import json
from pathlib import Path
from typing import Any

import pytest

from viditq_jax.report.speed import NOT_MEASURED, insert, speed_tables, summary

HEAD = {
    "device": "cpu",
    "platform": "cpu",
    "name": "Some CPU",
    "cores": 2,
    "date": "2026-11-23T01:02:03+00:00",
    "versions": {"jax": "0.10.2"},
    "ceilings": {
        "bfloat16_flop_per_s": 3e11, "float32_flop_per_s": 2e11, "int8_flop_per_s": 2.5e11,
        "copy_bytes_per_s": 2e10,
    },
    "settings": {"quick": True},
    "left_out": {},
}  # fmt: skip
BLOCK = "pixart block, width 1152, 1024 tokens"


def pipeline_row(recipe: str, seconds: float) -> dict[str, Any]:
    ratios = {"ratio_vs_float32": 0.1 / seconds, "ratio_vs_bfloat16": 0.05 / seconds}
    return {"case": BLOCK, "part": "block", "recipe": recipe, "median_s": seconds, **ratios}


def ops_row(implementation: str, seconds: float, op: str = "scaled_matmul") -> dict[str, Any]:
    return {
        "case": "pixart-sigma-512 attn/qkv", "op": op, "implementation": implementation, "m": 1024,
        "median_s": seconds, "ratio_vs_float32": 2.0, "ratio_vs_bfloat16": 0.5, "fraction_of_ceiling": 0.456,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline = {**HEAD, "rows": [pipeline_row("float32", 0.1), pipeline_row("bfloat16", 0.05)]}
    pipeline["rows"].append(pipeline_row("w8a8", 0.08))
    pictures = {"case": "packaged model, batch 4, pictures", "images_per_second": 2.5}
    pipeline["rows"].append({**pipeline_row("w8a8", 1.6), **pictures})
    ops = {**HEAD, "rows": [ops_row("float32", 1e-4), ops_row("xla", 3e-3), ops_row("mosaic_gpu", 2e-3)]}
    for kind, record in (("pipeline", pipeline), ("ops", ops)):
        (tmp_path / f"{kind}-cpu.json").write_text(json.dumps(record))
    return tmp_path


def test_a_cell_is_the_record_and_what_no_record_says_is_not_measured(folder: Path) -> None:
    lines = speed_tables(folder).splitlines()
    assert f"| {BLOCK} | `w8a8` | 80 ms: 1.25x float32, 0.62x bfloat16 | {NOT_MEASURED} |" in lines
    shown = "1.6 s (2.5 images/s): 0.06x float32, 0.03x bfloat16"
    assert f"| packaged model, batch 4, pictures | `w8a8` | {shown} | {NOT_MEASURED} |" in lines
    assert f"| {BLOCK} | bfloat16 | 50 ms: 2.00x float32 | {NOT_MEASURED} |" in lines
    assert f"| dit-xl-2-512, batch 16, step | `w4a8` | {NOT_MEASURED} | {NOT_MEASURED} |" in lines
    assert f"- NVIDIA H100: {NOT_MEASURED}." in lines
    assert any("Some CPU, 2 cores: jax 0.10.2, 2026-11-23, a quick run." in line for line in lines)


def test_of_an_op_the_fastest_implementation_is_shown_and_floats_are_none(folder: Path) -> None:
    cell = "2 ms: 2.00x float32, 0.50x bfloat16, 46% of the ceiling (mosaic_gpu, 1024 rows)"
    lines = [line for line in speed_tables(folder).splitlines() if "512 attn/qkv | `scaled" in line]
    assert lines == [f"| pixart-sigma-512 attn/qkv | `scaled_matmul` | {cell} | {NOT_MEASURED} |"]


def test_profiles_are_shown_where_a_record_has_them(folder: Path) -> None:
    assert "Where the time goes" not in speed_tables(folder)
    file = folder / "pipeline-cpu.json"
    record = json.loads(file.read_text())
    shares = {"matmul": 0.5, "attention": 0.25, "quantize": 0.125, "elementwise": 0.125, "other": 0.0}
    record["rows"][2]["profile"] = shares
    file.write_text(json.dumps(record))
    assert f"| Some CPU | {BLOCK} | w8a8 | 50% | 25% | 12% | 12% | 0% |" in speed_tables(folder).splitlines()


def test_a_device_that_nobody_expected_has_a_column(folder: Path) -> None:
    record = {
        **HEAD,
        "device": "tpu-v6e",
        "name": "TPU v6e",
        "platform": "tpu",
        "rows": [ops_row("xla", 5e-6)],
    }
    (folder / "ops-tpu-v6e.json").write_text(json.dumps(record))
    tables = speed_tables(folder)
    assert "| layer | op | a CPU | NVIDIA H100 | TPU v6e |" in tables.splitlines()
    assert "5 us: 2.00x float32" in tables


def test_without_records_nothing_is_measured(tmp_path: Path) -> None:
    tables = speed_tables(tmp_path)
    assert f"- a CPU: {NOT_MEASURED}." in tables
    assert f"| {BLOCK} | `w8a8` | {NOT_MEASURED} | {NOT_MEASURED} |" in tables


def test_tables_replace_what_is_between_the_marks_and_nothing_else() -> None:
    begin, end = "<!-- speed: written by benchmarks/readme.py -->", "<!-- end of speed -->"
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    once = insert(text, "new")
    assert once == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    assert insert(once, "new") == once
    with pytest.raises(ValueError, match="lacks the lines"):
        insert("no marks", "new")


def test_a_summary_has_a_line_a_row_and_says_what_was_left_out() -> None:
    record = {**HEAD, "rows": [pipeline_row("w8a8", 0.08), ops_row("xla", 1.5)]}
    record["left_out"] = {"scaled_matmul, a layer, mosaic_gpu": "unsupported: needs sm_90"}
    first, second, third = summary(record).splitlines()
    assert first.startswith(BLOCK)
    assert "1.25x float32" in first
    assert "scaled_matmul, pixart-sigma-512 attn/qkv" in second
    assert "1.5 s" in second
    assert "46% of the ceiling" in second
    assert third == "left out: scaled_matmul, a layer, mosaic_gpu: unsupported: needs sm_90"
