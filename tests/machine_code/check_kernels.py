"""Each row of `rows.py`, compiled for a GPU: its instruction, no spills, and no more than recorded."""

import functools
from typing import Any

import jax
import pytest

from tests.machine_code.aot import GEMM_TILE, Program, compile_for, device
from tests.machine_code.record import Record
from tests.machine_code.rows import OPS, ROWS, Row


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    target = metafunc.config.getoption("--target")
    rows = [row for row in ROWS if target in row.instruction]
    if "row" in metafunc.fixturenames:
        metafunc.parametrize("row", rows, ids=lambda row: row.name)
    if "product" in metafunc.fixturenames:
        products = [row for row in rows if row.instruction[target]]
        metafunc.parametrize("product", products, ids=lambda row: row.name)


@functools.cache
def compiled(row: Row, target: str) -> Program:
    function, shapes = row.program()
    return compile_for(target, function, *shapes, tile=GEMM_TILE if row.instruction[target] else None)


def test_a_product_is_on_the_tensor_cores(product: Row, target: str) -> None:
    assert any(code.count(product.instruction[target]) for code in compiled(product, target).code)


def test_no_product_of_integers_has_integers_of_8_bits_as_its_result(row: Row, target: str) -> None:
    """It would wrap, and no tensor core computes it."""
    for operands, result in compiled(row, target).module.products():
        assert "s8" not in operands or (operands, result) == (["s8", "s8"], "s32")


def test_nothing_spills_and_no_product_waits_for_the_one_before(row: Row, target: str) -> None:
    """Of kernels of our own: what XLA generates has the tiles that a device would choose by timing."""
    program = compiled(row, target)
    if row.implementation != "xla":
        assert program.cubins
        assert not any(code.spills or code.stack for code in program.code)
        assert not program.serialized


def test_it_takes_no_more_than_recorded(row: Row, target: str, record: Record) -> None:
    program = compiled(row, target)
    finding: dict[str, Any] = {
        "kernels": len(program.module.kernels),
        "moved_bytes": program.moved,
        "temporary_bytes": program.temporary_bytes,
    }
    if row.implementation != "xla":
        finding |= {"registers": max(code.registers for code in program.code)}
    known = record.compare("kernels", row.name, finding)
    more = {name: (value, known[name]) for name, value in finding.items() if value > known[name]}
    assert not more, "found, recorded"


@pytest.mark.parametrize("op", OPS)
def test_why_an_implementation_is_unsupported_is_as_recorded(op: str, target: str, record: Record) -> None:
    """The support table says it. None: it has rows, whose machine code the others look at."""
    with jax.default_device(device(target)):
        reasons = next(row for row in ROWS if row.op == op).reasons()
    compiled = {row.implementation for row in ROWS if row.op == op and target in row.instruction}
    assert {name for name, reason in reasons.items() if reason is None} <= compiled
    assert record.compare("reasons", op, reasons) == reasons
