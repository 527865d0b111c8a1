"""LLVM IR as Python writes it: loops in static single assignment, and vectors at addresses in bytes."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

POINTER, BYTE, INT, LONG = ir.PointerType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
BOOL, FLOAT, VOID = ir.IntType(1), ir.FloatType(), ir.VoidType()
LANES = 16  # of 32 bits in a register
INTS, FLOATS, MASK = (ir.VectorType(element, LANES) for element in (INT, FLOAT, BOOL))


def long(value: int) -> ir.Constant:
    """A 64-bit integer."""
    return ir.Constant(LONG, value)


def at(b: ir.IRBuilder, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
    """The address `offset` bytes after a pointer."""
    return b.gep(pointer, [long(offset) if isinstance(offset, int) else offset], source_etype=BYTE)


def load(b: ir.IRBuilder, pointer: ir.Value, of: ir.Type, offset: ir.Value | int = 0) -> ir.Value:
    """What lies at an address, which need not be a multiple of its size."""
    return b.load(at(b, pointer, offset), align=1, typ=of)


def store(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, offset: ir.Value | int = 0) -> None:
    """The inverse of load."""
    b.store(value, at(b, pointer, offset), align=1)


def stack(b: ir.IRBuilder, size: int) -> ir.Value:
    """The address of some bytes, a multiple of 8, that live as long as the call of the function."""
    with b.goto_entry_block():  # its last instruction is a branch
        slot = b.alloca(LONG, size // 8)  # of a typed pointer, which an integer forgets
        return b.inttoptr(b.ptrtoint(slot, LONG), POINTER)


def call(b: ir.IRBuilder, name: str, of: ir.Type, *arguments: ir.Value) -> ir.Value:
    """A call of an intrinsic, or of a function of the C library."""
    module = b.module
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(of, [argument.type for argument in arguments]), name)
    return b.call(module.globals[name], arguments)


def masked_load(b: ir.IRBuilder, pointer: ir.Value, of: ir.VectorType, mask: ir.Value) -> ir.Value:
    """Lanes in memory where the mask has them, and 0 elsewhere, where nothing is read."""
    name = f"llvm.masked.load.v{LANES}{of.element.intrinsic_name}.p0"
    return call(b, name, of, pointer, ir.Constant(INT, 1), mask, ir.Constant(of, None))


def masked_store(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value) -> None:
    """Nothing is written where the mask has no lanes."""
    name = f"llvm.masked.store.v{LANES}{value.type.element.intrinsic_name}.p0"
    call(b, name, VOID, value, pointer, ir.Constant(INT, 1), mask)


def splat(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """A scalar in all lanes."""
    vector = ir.VectorType(value.type, LANES)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(INT, 0))
    return b.shuffle_vector(first, first, ir.Constant(INTS, [0] * LANES))


def constant(value: int) -> ir.Constant:
    """A 32-bit integer in all lanes."""
    return ir.Constant(INTS, [value] * LANES)


def first_lanes(b: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """The mask of the first `count` lanes, all of them if there are more."""
    lanes = ir.Constant(ir.VectorType(LONG, LANES), list(range(LANES)))
    return b.icmp_signed("<", lanes, splat(b, count))


def least(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The smaller of two signed integers."""
    return b.select(b.icmp_signed("<", x, y), x, y)


def ceil_div(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """x / y, rounded up, of positive integers."""
    return b.sdiv(b.sub(b.add(x, y), long(1)), y)


Body = Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]]


def loop(
    b: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: ir.Value, body: Body, carried: Sequence[Any] = ()
) -> list[ir.Value]:
    """For i in range(start, stop, step), at least once: carried = body(i, carried). Returns it."""
    before, block = b.block, b.append_basic_block("loop")
    b.branch(block)
    b.position_at_end(block)
    phis = [b.phi(value.type) for value in (start, *carried)]
    for phi, value in zip(phis, (start, *carried), strict=True):
        phi.add_incoming(value, before)
    i = phis[0]
    after = list(body(i, phis[1:]))
    following = b.add(i, step)
    end = b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", following, stop), block, end)
    for phi, value in zip(phis, (following, *after), strict=True):
        phi.add_incoming(value, b.block)
    b.position_at_end(end)
    return after
