"""A few of the kill trials, and the record of the hundred."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
KILLS = 2


def test_what_was_killed_is_whole_and_goes_on_with_the_same_result(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """In a process of its own, which forks: this one has a device."""
    command = [
        sys.executable,
        "-m",
        "tests.kill_trials",
        "--kills",
        str(KILLS),
        "--out",
        str(tmp_path / "x.json"),
    ]
    command += ["--commands", "save", "generate"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "x.json").read_text())
    assert (record["kills"], record["damaged"]) == (KILLS, 0)
    record_property("kills survived", record["kills"])


def test_the_record_has_a_hundred_kills_and_none_that_damaged_anything() -> None:
    record = json.loads((ROOT / "benchmarks/records/kill-trials.json").read_text())
    assert record["kills"] >= 100
    assert record["damaged"] == 0
    assert {name for name, each in record["commands"].items() if each["kills"] >= 25} == {
        *("save", "export", "calibrate", "search", "generate")
    }
