"""Tile sizes: what the caller says, else what was measured, else a heuristic."""

import dataclasses
import json
from importlib import resources
from typing import NamedTuple

import pytest

import pallas_kernels
from pallas_kernels import tuning

SMALL, LARGE, HUGE = {"bm": 64}, {"bm": 128}, {"bm": 256}
FACTS = {"n": 1152, "m": 5000, "k": 64}
CHOICE = tuning.Choice(FACTS, [SMALL, LARGE])


@pytest.fixture
def measured(monkeypatch):
    """A table in which LARGE was the fastest of scaled_matmul by xla, with the kernel as it is now."""
    entry = {"tiles": LARGE, "median_s": 1e-3}
    kernel = {"hash": tuning.kernel_hash("scaled_matmul", "xla"), "entries": {tuning.key(FACTS): entry}}
    table = {"kernels": {"scaled_matmul/xla": kernel}}
    monkeypatch.setattr(tuning, "table", lambda device: table if device == "a-device" else {})
    return table


def pick(choice=CHOICE, explicit=None, device="a-device"):
    return tuning.pick("scaled_matmul", "xla", choice, explicit, device=device)


def test_explicit_comes_before_measured_and_measured_before_the_heuristic(measured):
    assert pick(explicit=SMALL) == SMALL
    assert pick() == LARGE
    assert pick(device="another-device") == SMALL


def test_the_default_device_is_asked_where_none_is_named():
    assert tuning.pick("scaled_matmul", "xla", CHOICE) == SMALL


def test_tiles_that_do_not_fit_are_refused_where_they_are_explicit_and_not_used_where_they_were_measured(
    measured,
):
    with pytest.raises(ValueError, match=r"\{'bm': 256\} were asked for.*choose one of \{'bm': 64\}"):
        pick(explicit=HUGE)
    assert pick(tuning.Choice(FACTS, [SMALL, HUGE])) == SMALL


def test_what_was_measured_of_another_version_of_the_kernel_is_not_used(measured):
    measured["kernels"]["scaled_matmul/xla"]["hash"] = "of an older file"
    assert pick() == SMALL


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192)])
def test_rows_share_a_measurement_up_to_the_next_power_of_two(rows, bucket):
    assert tuning.key({"m": rows, "k": 64}) == f"k=64 m<={bucket}"


def test_a_fact_that_differs_is_another_entry(measured):
    assert pick(tuning.Choice({**FACTS, "m": 8000}, [SMALL, LARGE])) == LARGE
    assert pick(tuning.Choice({**FACTS, "n": 3456}, [SMALL, LARGE])) == SMALL


def test_devices_are_named_as_files_are():
    assert tuning.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert tuning.device_name() == tuning.slug(tuning.device_name())


def test_tiles_of_any_kind_are_kept_as_plain_numbers(measured):
    class Tuple(NamedTuple):
        bm: int

    @dataclasses.dataclass(frozen=True)
    class Class:
        bm: int

    for kind in (Tuple, Class):
        small, large = kind(64), kind(128)
        assert tuning.plain(large) == LARGE
        choice = tuning.Choice(FACTS, [small, large])
        assert pick(choice) is large
        assert pick(choice, explicit=small) is small


def test_a_hash_covers_what_a_kernel_imports_and_not_its_reference(tmp_path, monkeypatch):
    """Of an op in a folder of its own, whose kernel imports a file of the op that imports another."""
    monkeypatch.setattr(pallas_kernels, "__path__", [*pallas_kernels.__path__, str(tmp_path)])
    (tmp_path / "toy").mkdir()
    files = {"__init__.py": "", "reference.py": "", "_deep.py": "DEEP = 1\n"}
    files["_body.py"] = "from pallas_kernels.toy._deep import DEEP\n"
    files["kernel.py"] = "from pallas_kernels.toy import _body, reference\n"
    seen = []
    for changed in (None, "reference.py", "_deep.py", "_body.py", "kernel.py"):
        for name, text in files.items():
            (tmp_path / "toy" / name).write_text(text + ("# changed\n" if name == changed else ""))
        tuning.kernel_hash.cache_clear()
        seen.append(tuning.kernel_hash("toy", "kernel"))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4
    tuning.kernel_hash.cache_clear()


def test_another_implementation_has_another_hash():
    assert tuning.kernel_hash("scaled_matmul", "xla") != tuning.kernel_hash("scaled_matmul", "reference")
    with pytest.raises(LookupError, match="'abacus'"):
        tuning.kernel_hash("scaled_matmul", "abacus")


def test_packaged_tables_are_of_the_kernels_as_they_are():
    """Else they would not be used, and nobody would know."""
    folder = resources.files("pallas_kernels") / "tuned"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")] if folder.is_dir() else []
    tables = [json.loads(file.read_text()) for file in files]
    assert all({"device", "date", "versions", "kernels"} <= table.keys() for table in tables)
    kernels = [item for table in tables for item in table["kernels"].items()]
    assert all(kernel["hash"] == tuning.kernel_hash(*name.split("/")) for name, kernel in kernels)
