"""Measured tiles are kept beside those of other shapes, and used from then on."""

import json
import textwrap

import jax.numpy as jnp
import pytest

import pallas_kernels.hadamard
from pallas_kernels import dispatch, tuning
from viditq_jax import plugins
from viditq_jax.bench.cases import Rotation
from viditq_jax.bench.tune import tune

KERNEL = '''
"""An implementation with tiles: it computes as XLA does; one of its tiles does not compile."""

from pallas_kernels import tuning
from pallas_kernels.hadamard import xla


def unsupported(x, *, block, regular):
    return None if x.shape[1] % 8 == 0 else "needs rows of a multiple of 8"


def candidates(x, *, block, regular):
    facts = {"m": x.shape[0], "k": x.shape[1], "block": block}
    return tuning.Choice(facts, [{"bm": 8}, {"bm": 16}, {"bm": 999}])


def run(x, *, block, regular, tiles=None):
    chosen = tuning.pick("hadamard", "tiled", candidates(x, block=block, regular=regular), tiles)
    if chosen["bm"] == 999:
        raise RuntimeError("exceeds available shared memory")
    return xla.run(x, block=block, regular=regular)
'''
CASES = [Rotation(f"rows of {k}", 16, k, 4) for k in (32, 64, 20)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The op `hadamard` with one implementation more, from a folder of its own."""
    (tmp_path / "tiled.py").write_text(textwrap.dedent(KERNEL))
    package = pallas_kernels.hadamard
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield tmp_path
    tuning.kernel_hash.cache_clear()


def test_the_best_of_each_shape_is_kept(folder):
    assert "tiled" in dispatch.implementations("hadamard")
    file = folder / "tuned/cpu.json"
    done = []
    tune(CASES[:1], file, samples=1, seconds=1.0, advance=done.append)
    table = tune(CASES[1:], file, samples=1, seconds=1.0, advance=done.append)
    assert json.loads(file.read_text()) == table
    assert sum(done) == 3
    assert table["device"] == tuning.device_name()
    assert {"date", "versions"} <= table.keys()
    kernel = table["kernels"]["hadamard/tiled"]
    assert kernel["hash"] == tuning.kernel_hash("hadamard", "tiled")
    assert sorted(kernel["entries"]) == ["block=4 k=32 m<=16", "block=4 k=64 m<=16"]  # 20 is unsupported
    for entry in kernel["entries"].values():
        assert entry["tiles"] in ({"bm": 8}, {"bm": 16})
        assert entry["candidates"] == 2
        assert "shared memory" in entry["failed"]['{"bm": 999}']
        assert entry["median_s"] <= entry["heuristic_median_s"]


def test_entries_of_an_older_kernel_are_dropped(folder):
    file = folder / "cpu.json"
    old = {"kernels": {"hadamard/tiled": {"hash": "older", "entries": {"block=4 k=64 m<=16": {}}}}}
    file.write_text(json.dumps(old))
    table = tune(CASES[:1], file, samples=1, seconds=1.0)
    assert list(table["kernels"]["hadamard/tiled"]["entries"]) == ["block=4 k=32 m<=16"]


def test_what_was_measured_is_used(folder, monkeypatch):
    table = tune(CASES[:1], folder / "cpu.json", samples=1, seconds=1.0)
    entry = table["kernels"]["hadamard/tiled"]["entries"]["block=4 k=32 m<=16"]
    entry["tiles"] = {"bm": 16}
    monkeypatch.setattr(tuning, "table", lambda device: table)
    choice = plugins.find("pallas_kernels.hadamard", "tiled", "candidates")(
        jnp.ones((16, 32)), block=4, regular=False
    )
    assert tuning.pick("hadamard", "tiled", choice) == {"bm": 16}
