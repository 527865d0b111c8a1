"""A whole block of PixArt, compiled for a GPU: quantized against bfloat16, in kernels and in bytes moved."""

import functools

import pytest

from tests.machine_code.aot import Program, compile_for
from tests.machine_code.blocks import BLOCKS, LAYERS, Block
from tests.machine_code.record import Record

(FLOAT,) = (block for block in BLOCKS if block.recipe == "float")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    target = metafunc.config.getoption("--target")
    if "block" in metafunc.fixturenames:
        blocks = [block for block in BLOCKS if target in block.targets]
        metafunc.parametrize("block", blocks, ids=lambda block: block.name)
    if "promise" in metafunc.fixturenames:
        promises = [block for block in BLOCKS if target in block.targets and block.moves]
        metafunc.parametrize("promise", promises, ids=lambda block: block.name)


@functools.cache
def compiled(block: Block, target: str) -> Program:
    """Tiles do not change which kernels there are, and small ones compile sooner."""
    function, shapes = block.program()
    return compile_for(target, function, *shapes, tile=None)


def test_it_launches_and_moves_no_more_than_recorded(block: Block, target: str, record: Record) -> None:
    program, plain = compiled(block, target), compiled(FLOAT, target)
    finding = {
        "kernels": len(program.module.kernels),
        "moved_bytes": program.moved,
        "moved_vs_bfloat16": round(program.moved / plain.moved, 3),
        "temporary_bytes": program.temporary_bytes,
    }
    known = record.compare("blocks", block.name, finding)
    more = {name: (value, known[name]) for name, value in finding.items() if value > known[name]}
    assert not more, "found, recorded"


def test_kernels_of_our_own_move_less_than_bfloat16_does_and_xla_alone_more(
    promise: Block, target: str
) -> None:
    """That is why other 8-bit models are slower than 16-bit ones."""
    ratio = compiled(promise, target).moved / compiled(FLOAT, target).moved
    assert ratio < 1 if promise.moves == "less" else ratio > 1


def test_each_layer_through_xla_is_one_integer_product_summed_in_int32(block: Block, target: str) -> None:
    """Elsewhere, kernels of our own may take the place of each."""
    products = list(compiled(block, target).module.products())
    integers = [result for operands, result in products if "s8" in operands]
    if block.implementation == "xla":
        assert integers == ["s32"] * LAYERS
    else:
        assert set(integers) <= {"s32"}


def test_every_product_is_a_tiled_kernel_and_no_loop_over_elements(block: Block, target: str) -> None:
    assert not compiled(block, target).module.untiled_products()
