"""The division of generation among devices and processes, as its benchmark measures it, on a tiny model."""

import pytest

from benchmarks import scale
from tests import tiny
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec


def test_devices_processes_and_kills_change_no_picture(tmp_path, monkeypatch: pytest.MonkeyPatch):
    # Nine processes run the same programs.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    recipe = Recipe((Rule(("blocks/*",), Spec.parse("int8/channel"), Spec.parse("int8/token")),))
    tiny.quantized(tiny.pipeline(depth=1), recipe).save(tmp_path / "artifact")
    record = scale.measure(
        tmp_path / "artifact",
        tiny.CORPUS,
        tmp_path,
        count=32,
        kills=3,
        batch=2,
        steps=4,
        devices=(1, 2),
        pause_s=0,
    )
    assert record["kills"] == 3
    assert 0 < max(record["listed_at_kill"]) < 32  # some fell in the middle
    assert record["listed_at_kill"] == sorted(record["listed_at_kill"])  # nothing that was listed is lost
    assert [row["run"] for row in record["runs"]] == ["1 devices", "2 devices", "2 processes"]
    assert len(list((tmp_path / "killed").glob("*.png"))) == 32
