"""Each row of `rows.py`, compiled for a GPU: its instruction, loops without spills, no more than recorded."""

import functools
from typing import Any

import jax
import pytest

from tests.machine_code.aot import GEMM_TILE, Program, compile_for, device
from tests.machine_code.record import Record
from tests.machine_code.rows import ASSEMBLED, LIBRARIES, OPS, ROWS, Row
from tests.machine_code.sass import SPILL_LOADS, SPILL_STORES, count


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """our_: of kernels of our own; what XLA generates has the tiles that a device would choose by timing."""
    target = metafunc.config.getoption("--target")
    rows = [row for row in ROWS if target in row.instruction]
    ours = [row for row in rows if row.implementation != "xla"]
    chosen = {
        "row": rows,
        "product": [row for row in rows if row.instruction[target]],
        "our_product": [row for row in ours if row.instruction[target]],
        "our_pass": [row for row in ours if not row.instruction[target]],
    }
    for name in chosen.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, chosen[name], ids=lambda row: row.name)


@functools.cache
def compiled(row: Row, target: str) -> Program:
    function, shapes = row.program()
    return compile_for(target, function, *shapes, tile=GEMM_TILE if row.instruction[target] else None)


def test_a_product_is_on_the_tensor_cores(product: Row, target: str) -> None:
    program = compiled(product, target)
    assert any(count(code.instructions, product.instruction[target]) for code in program.code)


def test_no_product_of_integers_has_integers_of_8_bits_as_its_result(row: Row, target: str) -> None:
    """It would wrap, and no tensor core computes it."""
    for operands, result in compiled(row, target).module.products():
        assert "s8" not in operands or (operands, result) == (["s8", "s8"], "s32")


def test_no_loop_over_k_spills_and_no_product_waits_for_the_one_before(our_product: Row, target: str) -> None:
    """But for the rows that say so. What is spilled once a tile is in the record."""
    program = compiled(our_product, target)
    loops = [code.inner for code in program.code if code.products]
    assert loops
    assert all(count(loop, our_product.instruction[target]) for loop in loops)
    assert sum(count(loop, SPILL_STORES, SPILL_LOADS) for loop in loops) <= our_product.loop_spills
    assert "Compiling entry function" in program.log  # else its silence would say nothing
    assert not program.serialized


def test_it_takes_no_more_than_recorded(row: Row, target: str, record: Record) -> None:
    program = compiled(row, target)
    finding: dict[str, Any] = {
        "kernels": len(program.module.kernels),
        "moved_bytes": program.moved,
        "temporary_bytes": program.temporary_bytes,
    }
    if row.implementation != "xla":
        codes = list(program.code)
        finding |= {
            "registers": max(code.registers for code in codes),
            "spill_stores": sum(count(code.instructions, SPILL_STORES) for code in codes),
            "spill_loads": sum(count(code.instructions, SPILL_LOADS) for code in codes),
            "loop_spills": sum(count(code.inner, SPILL_STORES, SPILL_LOADS) for code in codes),
        }
    known = record.compare("kernels", row.name, finding)
    more = {name: (value, known[name]) for name, value in finding.items() if value > known[name]}
    assert not more, "found, recorded"


def test_a_pass_over_rows_spills_nothing(our_pass: Row, target: str) -> None:
    """It reads each number once and keeps it: a spill would read it again."""
    codes = list(compiled(our_pass, target).code)
    assert codes
    assert not any(code.stack or count(code.instructions, SPILL_STORES, SPILL_LOADS) for code in codes)


@pytest.mark.parametrize("op", OPS)
def test_why_an_implementation_is_unsupported_is_as_recorded(op: str, target: str, record: Record) -> None:
    """The support table says it. None: it has rows, whose machine code the others look at, or other tests."""
    with jax.default_device(device(target)):
        reasons = next(row for row in ROWS if row.op == op).reasons()
    compiled = {row.implementation for row in ROWS if row.op == op and target in row.instruction}
    assert {
        name for name, reason in reasons.items() if reason is None
    } <= compiled | LIBRARIES | ASSEMBLED.keys()
    assert record.compare("reasons", op, reasons) == reasons
