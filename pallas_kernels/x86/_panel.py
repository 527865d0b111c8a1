"""A panel of w, packed: COLUMNS rows of w, which are columns of the result, as vpdpbusd wants their codes.

It is packed once and then serves many rows of x. For each 4 inputs it has VECTORS registers of 16 columns by
4 codes. After the codes come, for each group of inputs, two words and a scale of each column.

vpdpbusd multiplies unsigned by signed, so x comes as u = x + 128. With z = x_zero + 128, the sum of a group:

    acc[g] = u[group g] @ w[group g].T - z * sum((w - w_zero)[group g]) - sum(u[group g]) * w_zero[group g]

and a product of a sum and a zero point is one instruction: vpdpwssd adds two products of int16, and (s >> 7)
* (z * 128) + (s & 127) * z is s * z for every s of 22 bits. Such pairs of int16 are the words: of a sum,
(s >> 7, s & 127); of a zero point, (z * 128, z). 4-bit codes lose their zero points while they are packed,
which leaves no third term.
"""

from typing import NamedTuple

from llvmlite import ir

from pallas_kernels.x86 import _ir
from pallas_kernels.x86._ir import FLOATS, INT, INTS, LANES, at, constant, long

VECTORS = 4
COLUMNS = VECTORS * LANES
REGISTER = 4 * LANES  # bytes
STEP = VECTORS * REGISTER  # bytes of a panel for 4 inputs, or for one number of each column
NUMBERS = 3  # words and scales of a column and a group
BYTES = ir.VectorType(ir.IntType(8), REGISTER)
NOTHING = ir.Constant(INTS, None)


class Operands(NamedTuple):
    """Where the operands are, and their sizes."""

    x: ir.Value  # uint8 [m, k]: u
    w: ir.Value  # int8 [n, k], or two 4-bit codes a byte, [n, k / 2]
    w_scale: ir.Value  # float32 [groups, n]
    x_zero: ir.Value  # int32 [m]: word of z
    w_zero: ir.Value  # int32 [groups, n]
    x_sum: ir.Value  # int32 [m, groups]: word of sum(u[group g]); not read with 4-bit codes
    y: ir.Value  # float32 [m, n]
    m: ir.Value
    n: ir.Value
    k: ir.Value
    groups: ir.Value


def column_words(b: ir.IRBuilder, o: Operands, panel: ir.Value | int) -> ir.Value:
    """Where the words of the first group are. The last codes leave room for a whole chunk."""
    return at(b, panel, b.mul(b.add(o.k, long(REGISTER)), long(COLUMNS)))


def size(b: ir.IRBuilder, o: Operands) -> ir.Value:
    """Of a panel, in bytes, whole registers."""
    codes = b.mul(b.add(o.k, long(REGISTER)), long(COLUMNS))
    return b.add(codes, b.mul(o.groups, long(NUMBERS * STEP)))


def dot_bytes(b: ir.IRBuilder, acc: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
    """acc, and in each lane the four products of its bytes."""
    return _ir.call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, acc, unsigned, signed)


def dot_words(b: ir.IRBuilder, acc: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    """acc, and in each lane the two products of its signed halves."""
    return _ir.call(b, "llvm.x86.avx512.vpdpwssd.512", INTS, acc, x, y)


def _transposed(b: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Of 16 registers of 16 lanes: register i gets lane i of each."""
    distance = 1
    while distance < LANES:
        lanes = range(LANES)
        low = [i + (LANES - distance if i & distance else 0) for i in lanes]
        high = [i + (LANES if i & distance else distance) for i in lanes]
        swapped = list(rows)
        for i in lanes:
            if not i & distance:
                for j, mask in ((i, low), (i + distance, high)):
                    swapped[j] = b.shuffle_vector(rows[i], rows[i + distance], ir.Constant(INTS, mask))
        rows, distance = swapped, 2 * distance
    return rows


class _Chunk(NamedTuple):
    """At most 64 neighbouring inputs of a group."""

    length: ir.Value
    source: ir.Value  # the first byte in a row of w
    shift: ir.Value | None  # of 4-bit codes


def _chunk(b: ir.IRBuilder, position: ir.Value, stop: ir.Value, half: ir.Value | None) -> _Chunk:
    """The chunk that begins at an input; with 4-bit codes, it ends where their low halves do."""
    if half is None:
        return _Chunk(_ir.least(b, b.sub(stop, position), long(REGISTER)), position, None)
    low = b.icmp_signed("<", position, half)
    end = b.select(low, _ir.least(b, stop, half), stop)
    source = b.select(low, position, b.sub(position, half))
    shift = b.select(low, constant(0), constant(4))
    return _Chunk(_ir.least(b, b.sub(end, position), long(REGISTER)), source, shift)


def _chunks(b: ir.IRBuilder, start: ir.Value, stop: ir.Value, half: ir.Value | None) -> ir.Value:
    """The number of chunks of a group."""

    def of(start: ir.Value, stop: ir.Value) -> ir.Value:
        return _ir.ceil_div(b, b.sub(stop, start), long(REGISTER))

    if half is None:
        return of(start, stop)
    inside = b.and_(b.icmp_signed("<", start, half), b.icmp_signed("<", half, stop))
    return b.select(inside, b.add(of(start, half), of(half, stop)), of(start, stop))


def _codes(b: ir.IRBuilder, rows: list[ir.Value], chunk: _Chunk) -> list[ir.Value]:
    """The codes of a chunk as int8, 16 columns by 4 inputs in a register; past its end they are 0."""
    there = _ir.first_lanes(b, b.sdiv(chunk.length, long(4)))
    found = [_ir.masked_load(b, at(b, row, chunk.source), INTS, there) for row in rows]
    if chunk.shift is None:
        return _transposed(b, found)
    nibbles = [b.and_(b.lshr(row, chunk.shift), constant(0x0F0F0F0F)) for row in found]
    eight = ir.Constant(BYTES, [8] * REGISTER)  # x ^ 8 - 8 extends the sign of 4 bits
    wide = [b.sub(b.xor(b.bitcast(row, BYTES), eight), eight) for row in nibbles]
    return _transposed(b, [b.bitcast(row, INTS) for row in wide])


def _pair(b: ir.IRBuilder, total: ir.Value) -> ir.Value:
    high = b.shl(b.ashr(total, constant(7)), constant(16))
    return b.or_(high, b.and_(total, constant(127)))


def pack(b: ir.IRBuilder, o: Operands, panel: ir.Value, column: ir.Value, *, packed: bool) -> None:
    """Fill a panel from a column on. Columns past n repeat the last one.

    packed: codes are of 4 bits.
    """
    last, words, in_group = b.sub(o.n, long(1)), column_words(b, o, panel), b.sdiv(o.k, o.groups)
    half = b.sdiv(o.k, long(2)) if packed else None

    def of_vector(v: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        first, here = b.add(column, b.mul(v, long(LANES))), b.mul(v, long(REGISTER))
        columns = [_ir.least(b, b.add(first, long(i)), last) for i in range(LANES)]
        rows = [at(b, o.w, b.mul(i, o.k if half is None else half)) for i in columns]
        there = _ir.first_lanes(b, b.sub(o.n, first))

        def of_group(g: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            start = b.mul(g, in_group)
            stop = b.add(start, in_group)
            of_columns = b.mul(b.add(b.mul(g, o.n), first), long(4))
            zero, zeros = _ir.masked_load(b, at(b, o.w_zero, of_columns), INTS, there), NOTHING
            if packed:
                zeros = b.mul(b.and_(zero, constant(255)), constant(0x01010101))

            def of_chunk(_: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
                position, total = carried
                chunk = _chunk(b, position, stop, half)
                target = at(b, panel, b.add(b.mul(position, long(COLUMNS)), here))
                for i, codes in enumerate(_codes(b, rows, chunk)):
                    total = dot_bytes(b, total, constant(0x01010101), codes)
                    if packed:
                        codes = b.bitcast(b.sub(b.bitcast(codes, BYTES), b.bitcast(zeros, BYTES)), INTS)
                    _ir.store(b, codes, target, i * STEP)
                return [b.add(position, chunk.length), total]

            chunks = _chunks(b, start, stop, half)
            _, total = _ir.loop(b, long(0), chunks, long(1), of_chunk, [start, NOTHING])
            negative = b.sub(b.mul(zero, _ir.splat(b, b.trunc(in_group, INT))), total)
            minus = b.sub(NOTHING, zero)
            group = at(b, words, b.add(b.mul(g, long(NUMBERS * STEP)), here))
            _ir.store(b, _pair(b, negative), group)
            word = b.or_(b.shl(minus, constant(23)), b.and_(minus, constant(65535)))
            _ir.store(b, word, group, STEP)
            _ir.store(b, _ir.masked_load(b, at(b, o.w_scale, of_columns), FLOATS, there), group, 2 * STEP)
            return []

        return _ir.loop(b, long(0), o.groups, long(1), of_group)

    _ir.loop(b, long(0), long(VECTORS), long(1), of_vector)
