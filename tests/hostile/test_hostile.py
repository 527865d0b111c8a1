"""Every door, and what must not come in: a clear error, nothing run, nothing changed, nothing half-written.

The cases lie beside this file, a door a file. That reading also ends in bounded time is for `fuzz.py`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile import artifacts, exported, http_requests, records, safetensors_files, texts, torch_files
from tests.hostile.door import CANARY, Case

CASES = [
    *safetensors_files.CASES,
    *torch_files.CASES,
    *artifacts.CASES,
    *exported.CASES,
    *texts.CASES,
    *records.CASES,
    *http_requests.CASES,
]
FEWEST = 100


def content(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """All that lies in a folder: modes, bytes, and where links lead."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        what = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, what)
    return found


# TensorStore tells a loop that has ended of other arrays, where one could not be read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_input_is_refused_in_one_clear_line_and_nothing_else_happens(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    inputs, out = tmp_path / "inputs", tmp_path / "out"
    inputs.mkdir()
    out.mkdir()
    monkeypatch.chdir(out)  # whatever is written to a relative name is seen
    case.make(inputs)
    before = content(inputs)
    with pytest.raises((ValueError, OSError)) as caught:
        case.enter(inputs, out)
    said = str(caught.value)
    assert re.search(case.says, said), said
    assert case.lines or "\n" not in said, said
    assert len(said) < 3000
    assert all(sign.isprintable() or sign == "\n" for sign in said), said
    assert not (inputs / CANARY).exists()
    assert content(inputs) == before
    assert not list(out.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"inputs", "out"}
    record_property("hostile inputs refused", 1)


def test_the_suite_has_as_many_cases_as_it_promises() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= FEWEST
