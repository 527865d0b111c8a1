"""Speeds of ops: what a record becomes, which shape stands for which, and what is chosen by them."""

import json

import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch, measured, tuning
from pallas_kernels.scaled_matmul import scaled_matmul

ROWS = [
    {"op": "scaled_matmul", "m": 1024, "k": 1024, "n": 4096, "epilogue": "none", "implementation": name,
     "median_s": seconds}
    for name, seconds in (("bfloat16", 8e-3), ("float32", 1.6e-2), ("xla", 4e-3))
] + [
    {"op": "scaled_matmul", "m": 1024, "k": 1024, "n": 4096, "epilogue": "gelu", "implementation": "xla",
     "median_s": 5e-3},
    {"op": "attention", "implementation": "xla", "median_s": 1.0},
]  # fmt: skip


@pytest.fixture
def kept(monkeypatch):
    """The table of this device as if these rows had been measured here."""

    def keep(rows, host=None):
        table = {"name": host or tuning.host_name(), "speeds": measured.compact(rows)}
        monkeypatch.setattr(tuning, "table", lambda device: json.loads(json.dumps(table)))
        measured.speeds.cache_clear()

    yield keep
    measured.speeds.cache_clear()


def test_a_shape_that_was_measured_has_its_own_times(kept):
    kept(ROWS)
    speed = measured.speed("scaled_matmul", (1024, 1024, 4096), "epilogue=none")
    assert speed.seconds == {"bfloat16": 8e-3, "float32": 1.6e-2, "xla": 4e-3}
    assert measured.speed("scaled_matmul", (1024, 1024, 4096), "epilogue=gelu").seconds == {"xla": 5e-3}


def test_another_shape_is_scaled_from_the_nearest_and_a_far_one_is_unknown(kept):
    kept(ROWS)
    assert measured.speed("scaled_matmul", (512, 2048, 2048), "epilogue=none").seconds["xla"] == 2e-3
    assert measured.speed("scaled_matmul", (8, 1024, 4096)) is None
    assert measured.speed("packed_matmul", (1024, 1024, 4096)) is None


def test_another_machine_or_another_version_of_the_code_measured_nothing(kept, monkeypatch):
    kept(ROWS, host="another processor")
    assert measured.speeds("scaled_matmul") == ()
    kept(ROWS)
    monkeypatch.setattr(tuning, "kernel_hash", lambda op, name: "changed")
    assert "xla" not in measured.speed("scaled_matmul", (1024, 1024, 4096)).seconds


def test_the_fastest_is_chosen_unless_the_first_was_not_timed(kept):
    kept(ROWS)
    x, w = jnp.zeros((1024, 1024), jnp.int8), jnp.zeros((4096, 1024), jnp.int8)
    assert measured.fastest("scaled_matmul", (x, w), ["xla"]) == "xla"
    assert measured.fastest("scaled_matmul", (x, w), ["new", "xla"]) is None
    assert measured.fastest("scaled_matmul", (x[:2], w), ["xla"]) is None


def test_none_takes_what_was_measured_to_be_fastest(kept, monkeypatch):
    asked = []

    class Slow:
        @staticmethod
        def unsupported(*args, **options):
            return None

        @staticmethod
        def run(*args, **options):
            asked.append("slow")
            return dispatch._module("scaled_matmul", "xla").run(*args, **options)

    found = dispatch._module
    monkeypatch.setattr(dispatch, "implementations", lambda op: ["slow", "xla"])
    monkeypatch.setattr(dispatch, "_module", lambda op, name: Slow if name == "slow" else found(op, name))
    hashed = tuning.kernel_hash
    monkeypatch.setattr(tuning, "kernel_hash", lambda op, n: "slow" if n == "slow" else hashed(op, n))
    small = [{**row, "m": 8, "k": 32, "n": 16} for row in ROWS[:3]]
    x, w = jnp.ones((8, 32), jnp.int8), jnp.ones((16, 32), jnp.int8)
    one = jnp.ones((1, 1))
    for seconds, expected in ((1.0, []), (1e-3, ["slow"])):
        kept([*small, {**small[0], "implementation": "slow", "median_s": seconds}])
        asked.clear()
        assert float(scaled_matmul(x, w, one, one)[0, 0]) == 32
        assert asked == expected
