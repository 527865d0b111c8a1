"""The records that a benchmark writes, whatever happens on the way."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from tests import tiny
from viditq_jax import bench as package
from viditq_jax.bench import bench, block, models
from viditq_jax.bench.attention import bench_attention
from viditq_jax.bench.device import ceilings, header
from viditq_jax.bench.models import Workload
from viditq_jax.cli import main
from viditq_jax.models import dit, pixart
from viditq_jax.net import Net

ROOT = Path(__file__).parent.parent.parent.parent
TINY = Workload("tiny dit", "dit", "tiny", batch=1, steps=2)
RATES = {f"{name}_flop_per_s": 1e12 for name in ("float32", "bfloat16", "int8")}
CEILINGS = {**RATES, "copy_bytes_per_s": 1e10}


def test_a_header_tells_device_versions_and_date() -> None:
    head = header()
    assert (head["device"], head["platform"]) == ("cpu", "cpu")
    assert head["cores"] >= 1
    assert {"jax", "numpy"} <= head["versions"].keys()
    assert json.loads(json.dumps(head)) == head


def test_ceilings_are_rates() -> None:
    """8 MB and products of 64 rows: no rates of this machine, but of its order."""
    found = ceilings(side=64, megabytes=8, samples=1)
    rates = [found[f"{name}_flop_per_s"] for name in ("float32", "bfloat16", "int8")]
    assert all(1e6 < rate < 1e14 for rate in rates)
    assert 1e7 < found["copy_bytes_per_s"] < 1e13
    assert (found["matmul_side"], found["copy_bytes"]) == (64, 16 << 20)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same benchmark on sizes of a test."""
    monkeypatch.setattr(package, "ceilings", lambda samples: ceilings(side=64, megabytes=1, samples=1))
    monkeypatch.setattr(models, "DEFAULT", TINY)
    config = dit.Config(width=32, depth=1, heads=2, patch_size=8, classes=10)
    monkeypatch.setitem(dit.CONFIGS, "tiny", config)


def test_cases_that_had_no_time_are_named_in_the_record(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--quick", "--limit", "-1", "--out", str(tmp_path)]) == 0
    records = {file.name: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert records.keys() == {"ops-cpu.json", "pipeline-cpu.json"}
    for record in records.values():
        assert record["rows"] == []
        assert set(record["left_out"].values()) == {"no time was left"}
        assert record["settings"]["quick"]
        assert {"device", "cores", "versions", "date", "ceilings"} <= record.keys()
    assert {block.CASE, TINY.name} <= records["pipeline-cpu.json"]["left_out"].keys()
    assert f"left out: {block.CASE}: no time was left" in capsys.readouterr().out


def test_whole_models_are_measured_and_a_failure_is_no_end(small: None, tmp_path: Path) -> None:
    records = bench(tmp_path, parts=("pipeline",), recipes=("w8a8-dynamic",))
    record = records["pipeline-cpu.json"]
    assert record == json.loads((tmp_path / "pipeline-cpu.json").read_text())
    assert [row["recipe"] for row in record["rows"]] == 2 * ["float32", "bfloat16", "w8a8-dynamic"]
    broken = bench(tmp_path, parts=("pipeline",), recipes=("no-such-recipe",))
    assert "RecipeError" in broken["pipeline-cpu.json"]["left_out"][TINY.name]


def test_parts_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no part kernels; choose of block, ops, pipeline"):
        bench(tmp_path, parts=("kernels",))
    with pytest.raises(ValueError, match="add this part, or do not tune"):
        bench(tmp_path, parts=("block",), tuned=True)


def test_a_file_without_rivals_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("rival = None\n")
    assert main(["bench", "--rivals", str(tmp_path / "mine.py"), "--out", str(tmp_path)]) == 1
    assert "defines no function `rivals`" in capsys.readouterr().err


def test_attention_is_compared_with_that_of_jax(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("viditq_jax.bench.attention.CPU_TOKENS", 16)
    rows, left_out = bench_attention(72, CEILINGS, samples=1, seconds=1.0)
    eight = "8-bit queries and keys"
    assert [row["implementation"] for row in rows] == ["jax.nn", "xla", f"xla, {eight}"]
    assert list(left_out) == ["cudnn", f"cudnn, {eight}"]
    assert rows[0]["ratio_vs_float"] == 1
    assert (
        rows[0]["bytes"] == 4 * 16 * 16 * 72 * 2
    )  # q, k, v and the result, 16 tokens of 16 heads in bfloat16


def test_rivals_stand_beside_the_block_and_those_that_are_absent_have_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(pixart.CONFIGS, "tiny", tiny.PIXART)
    monkeypatch.setattr(block, "WORKLOAD", Workload("a block", config="tiny", batch=1, depth=1))

    def rivals(net: Net, inputs: Any) -> tuple[dict[str, Any], dict[str, str]]:
        assert net.dtype == jnp.bfloat16
        return {"another": lambda i: inputs["tokens"][i % 2] + 1}, {"a third": "not installed"}

    rows, left_out = block.bench_block(["w8a8-dynamic"], CEILINGS, samples=1, seconds=1.0, rivals=rivals)
    assert [row["recipe"] for row in rows] == [
        "float32",
        "w8a8-dynamic, float32 around",
        "bfloat16",
        "w8a8-dynamic",
        "another",
    ]
    assert left_out == {"a third": "not installed"}
    assert all(row["case"] == block.CASE and row["ratio_vs_bfloat16"] > 0 for row in rows)
    quantized, rival = rows[3:]
    assert quantized["parameter_bytes"] < 0.6 * rows[2]["parameter_bytes"]
    assert "parameter_bytes" not in rival
    assert quantized["fraction_of_ideal"] > 0


def test_the_script_for_a_gpu_is_valid_and_begins_with_the_numerics() -> None:
    script = ROOT / "benchmarks/gpu.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert text.index("pytest tests/pallas_kernels") < text.index("from viditq_jax.bench import bench")
