"""The product of some rows of x with a packed panel of w, a tile in registers at a time.

A tile of 6 rows by 64 columns keeps 24 of the 32 registers for sums. In a step it loads 4 registers of w and
6 times 4 codes of x, and does 24 vpdpbusd, of which a core starts two a cycle. Tiles of 8 by 48 take 3 %
longer, of 12 by 32 and of 14 by 32 12 % (1024x1152x1152, one thread of a shared Xeon with AVX512-VNNI).
"""

from llvmlite import ir

from pallas_kernels.x86 import _ir
from pallas_kernels.x86._ir import FLOATS, INT, INTS, LANES, LONG, POINTER, VOID, at, long
from pallas_kernels.x86._panel import (
    COLUMNS,
    NOTHING,
    NUMBERS,
    REGISTER,
    STEP,
    VECTORS,
    Operands,
    column_words,
    dot_bytes,
    dot_words,
    pack,
)

ROWS = (6, 2, 1)  # of tiles: those after the first take the rows that are left
Registers = list[list[ir.Value]]  # rows of VECTORS


def _sums(
    b: ir.IRBuilder, x: list[ir.Value], panel: ir.Value, start: ir.Value, stop: ir.Value, accs: Registers
) -> Registers:
    """The accumulators with the products of inputs start to stop added."""
    rows = range(len(accs))

    def step(k: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        here = at(b, panel, b.mul(k, long(COLUMNS)))
        w = [_ir.load(b, here, INTS, v * REGISTER) for v in range(VECTORS)]
        for i in rows:
            codes = _ir.splat(b, _ir.load(b, x[i], INT, k))
            of_row = slice(i * VECTORS, (i + 1) * VECTORS)
            carried[of_row] = [
                dot_bytes(b, *pair) for pair in zip(carried[of_row], [codes] * VECTORS, w, strict=True)
            ]
        return carried

    flat = _ir.loop(b, start, stop, long(4), step, [acc for row in accs for acc in row])
    return [flat[i * VECTORS : (i + 1) * VECTORS] for i in rows]


def tile(
    b: ir.IRBuilder, o: Operands, panel: ir.Value, row: ir.Value, column: ir.Value, rows: int, *, packed: bool
) -> None:
    """y[row : row + rows, column : column + COLUMNS], as much of it as there is."""
    in_group, vectors = b.sdiv(o.k, o.groups), range(VECTORS)
    there = [_ir.first_lanes(b, b.sub(o.n, b.add(column, long(v * LANES)))) for v in vectors]
    indices = [b.add(row, long(i)) for i in range(rows)]
    x = [at(b, o.x, b.mul(i, o.k)) for i in indices]
    y = [at(b, o.y, b.mul(b.add(b.mul(i, o.n), column), long(4))) for i in indices]
    targets = [[at(b, start, v * REGISTER) for v in vectors] for start in y]
    words = column_words(b, o, panel)

    def of_group(g: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        start, group = b.mul(g, in_group), at(b, words, b.mul(g, long(NUMBERS * STEP)))
        sums = [_ir.load(b, group, INTS, v * REGISTER) for v in vectors]
        zeros = [_ir.splat(b, _ir.load(b, o.x_zero, INT, b.mul(i, long(4)))) for i in indices]
        accs = [[dot_words(b, NOTHING, zero, sums[v]) for v in vectors] for zero in zeros]
        if not packed:
            zeros_of_w = [_ir.load(b, group, INTS, STEP + v * REGISTER) for v in vectors]
            for i in range(rows):
                here = b.mul(b.add(b.mul(indices[i], o.groups), g), long(4))
                total = _ir.splat(b, _ir.load(b, o.x_sum, INT, here))
                accs[i] = [dot_words(b, accs[i][v], total, zeros_of_w[v]) for v in vectors]
        accs = _sums(b, x, panel, start, b.add(start, in_group), accs)
        scales = [_ir.load(b, group, FLOATS, 2 * STEP + v * REGISTER) for v in vectors]
        places = [(i, v) for i in range(rows) for v in vectors]
        terms = {(i, v): b.sitofp(accs[i][v], FLOATS) for i, v in places}
        with b.if_else(b.icmp_signed("==", g, long(0))) as (first, later):
            with first:
                for i, v in places:
                    _ir.masked_store(b, b.fmul(terms[i, v], scales[v]), targets[i][v], there[v])
            with later:
                for i, v in places:
                    before = _ir.masked_load(b, targets[i][v], FLOATS, there[v])
                    after = _ir.call(b, "llvm.fma.v16f32", FLOATS, terms[i, v], scales[v], before)
                    _ir.masked_store(b, after, targets[i][v], there[v])
        return []

    _ir.loop(b, long(0), o.groups, long(1), of_group)


def function(module: ir.Module, *, packed: bool) -> ir.Function:
    """void(operands..., panel, column, start, stop): COLUMNS columns of y in rows start to stop.

    panel: where to pack them, `_panel.size` bytes.
    """
    types = [POINTER] * 7 + [LONG] * 4
    made = ir.Function(module, ir.FunctionType(VOID, [*types, POINTER, LONG, LONG, LONG]), "columns")
    *operands, panel, column, start, stop = made.args
    o = Operands(*operands)
    b = ir.IRBuilder(made.append_basic_block())
    pack(b, o, panel, column, packed=packed)
    for rows in ROWS:
        left = b.sub(stop, start)
        end = b.add(start, b.sub(left, b.srem(left, long(rows))))
        with b.if_then(b.icmp_signed("<", start, end)):

            def of_tile(row: ir.Value, _: list[ir.Value], rows: int = rows) -> list[ir.Value]:
                tile(b, o, panel, row, column, rows, packed=packed)
                return []

            _ir.loop(b, start, end, long(rows), of_tile)
        start = end
    b.ret_void()
    return made
