"""What docs/kernels.md says of each kernel on each device is what the code and the records say."""

import pytest

from benchmarks.kernel_tables import PAGE, ROOT, support, with_tables
from pallas_kernels import dispatch
from tests.machine_code.record import machine_code
from tests.machine_code.rows import OPS, ROWS
from tests.machine_code.targets import TARGETS


def test_the_committed_tables_are_those_that_the_command_makes() -> None:
    """Otherwise: python -m benchmarks.kernel_tables."""
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page


def test_every_op_is_in_the_tables() -> None:
    folders = {file.parent.name for file in (ROOT / "pallas_kernels").glob("*/reference.py")}
    assert folders == OPS.keys() == {row.op for row in ROWS}


@pytest.mark.parametrize("op", OPS)
def test_every_implementation_has_a_row(op: str) -> None:
    for name in dispatch.implementations(op):
        assert f"| `{op}` | `{name}` |" in support()


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_that_is_checked_is_recorded_and_no_other(target: str) -> None:
    names = {row.name for row in ROWS if target in row.instruction}
    assert names == machine_code(target)["kernels"].keys()


def test_names_of_rows_are_unique() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
