"""Products of int8 codes: tiles of int32 sums from the tensor cores, and all that follows them in one pass.

A tile of y belongs to one block. It goes over the codes in steps; after the steps of a group of scales the
sums become float32. Packed weights are read where their codes are: low halves of bytes for the first half of
a row, high halves of the same bytes, by then in the L2 cache, for the second. A code in the high half of a
byte is 16 times itself, so one mask makes it, and the sums of a group are divided by 16.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def together(codes, CAPABILITY: tl.constexpr):
    """int8 codes as they are, on Ampere and Ada four in a register.

    Without this Triton (3.9) loads operands of a product one step ahead into registers of one
    code each: eight more instructions for each product, which then take longer than it does.
    """
    if CAPABILITY // 10 == 8:
        nothing = tl.zeros_like(codes)  # an instruction of two operands is what it does not look through
        codes = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r,r", [codes, nothing], dtype=tl.int8, is_pure=True, pack=4
        )
    return codes


@triton.jit
@no_type_check
def upper_halves(packed, shift, CAPABILITY: tl.constexpr):
    """Bytes shifted to the left by 0 or 4: their upper halves, as 16 times int8 codes."""
    if CAPABILITY > 0:
        shifts = tl.zeros_like(packed) + shift.to(tl.uint8)
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 shift;
            and.b32 shift, $2, 7;
            shl.b32 $0, $1, shift;
            and.b32 $0, $0, 0xF0F0F0F0;
            }""",
            "=r,r,r", [packed, shifts], dtype=tl.int8, is_pure=True, pack=4,
        )  # fmt: skip
    return ((packed << shift.to(tl.uint8)) & 0xF0).to(tl.int8, bitcast=True)


@triton.jit
@no_type_check
def product(
    x,  # [m, k] int8
    w,  # [n, k] int8, or [n, k / 2] uint8
    x_scale,  # [m]
    w_scale,  # [groups, n], and so are all that belong to groups of w
    x_zero,  # [m] int32
    w_sum,  # [groups, n] int32
    x_sum,  # [groups, m] int32
    w_zero,  # [groups, n] int32
    bias,  # [n]
    residual,  # [m, n]
    gate,  # [b, n]
    y,  # [m, n]
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,  # codes with one scale of w
    PACKED: tl.constexpr,
    X_ZERO: tl.constexpr,
    W_ZERO: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    RESIDUAL: tl.constexpr,
    IMAGE: tl.constexpr,  # rows with one row of the gate; 0 without a gate
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,  # codes of a step; of packed weights, a step is in one half of the row
    BAND: tl.constexpr,  # tiles of rows that take turns, so that the blocks of a moment share what they load
    CAPABILITY: tl.constexpr,  # 80 for 8.0; 0 in Triton's interpreter, which knows no assembler
):
    """One tile of y."""
    across: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    down: tl.constexpr = (M + ROWS - 1) // ROWS
    tile = tl.program_id(0)
    first = tile // (BAND * across) * BAND
    height = tl.minimum(down - first, BAND)
    inside = tile % (BAND * across)
    rows = (first + inside % height) * ROWS + tl.arange(0, ROWS)
    columns = inside // height * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    # Loads outside of the arrays are of the last row, and what comes of them is not stored.
    row = tl.minimum(rows, M - 1)
    column = tl.minimum(columns, N - 1)
    full = columns < N

    x_tile = x + row[:, None] * K + depth[None, :]  # [rows, depth]
    if PACKED:
        w_tile = w + column[None, :] * (K // 2) + depth[:, None]  # [depth, columns]
    else:
        w_tile = w + column[None, :] * K + depth[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(K // GROUP):
        acc = tl.zeros((ROWS, COLUMNS), tl.int32)
        for step in range(0, GROUP, DEPTH):
            start = group * GROUP + step
            if GROUP % DEPTH == 0:
                left = tl.load(x_tile + start)
            else:
                left = tl.load(x_tile + start, mask=(step + depth < GROUP)[None, :], other=0)
            if PACKED:
                high = start >= K // 2
                right = tl.load(w_tile + tl.where(high, start - K // 2, start))
                right = upper_halves(right, tl.where(high, 0, 4), CAPABILITY)
            else:
                if GROUP % DEPTH == 0:
                    right = tl.load(w_tile + start)
                else:
                    right = tl.load(w_tile + start, mask=(step + depth < GROUP)[:, None], other=0)
                right = together(right, CAPABILITY)
            acc = tl.dot(together(left, CAPABILITY), right, acc, out_dtype=tl.int32)
        if PACKED:
            acc = acc >> 4
        if X_ZERO:
            of_x = tl.load(x_zero + row)
            acc -= of_x[:, None] * tl.load(w_sum + group * N + columns, mask=full, other=0)[None, :]
        if W_ZERO:
            of_w = tl.load(w_zero + group * N + columns, mask=full, other=0)
            acc -= tl.load(x_sum + group * M + row)[:, None] * of_w[None, :]
        sums += acc.to(tl.float32) * tl.load(w_scale + group * N + columns, mask=full, other=0)[None, :]

    out = sums * tl.load(x_scale + row)[:, None]
    if BIAS:
        out += tl.load(bias + columns, mask=full, other=0).to(tl.float32)[None, :]
    if GELU:
        # x / (1 + exp(-2 u)) equals 0.5 x (1 + tanh(u)); 1.5957691216057308 is 2 sqrt(2 / pi).
        out = out / (1 + tl.exp(-1.5957691216057308 * (out + 0.044715 * out * out * out)))
    inside_y = (rows < M)[:, None] & full[None, :]
    place = row[:, None] * N + columns[None, :]
    if IMAGE > 0:
        if IMAGE % ROWS == 0:  # the rows of a tile have one row of the gate
            image = (first + inside % height) * ROWS // IMAGE
            out *= tl.load(gate + image * N + columns, mask=full, other=0).to(tl.float32)[None, :]
        else:
            out *= tl.load(gate + (row // IMAGE)[:, None] * N + columns[None, :], mask=inside_y, other=0).to(
                tl.float32
            )
    if RESIDUAL:
        out += tl.load(residual + place, mask=inside_y, other=0).to(tl.float32)
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside_y)
