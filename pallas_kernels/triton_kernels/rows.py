"""Rows to codes in one pass: a block of threads has a few whole rows in registers, padded to powers of 2.

What belongs to channels comes prepared in float32: the modulation with balance and signs in it, or their
product as a multiplier. Sums and products stay apart here (`Program.fuses`), as codes depend on every bit.
"""

from typing import no_type_check

import triton
import triton.language as tl

# Added and taken off again, it leaves a number of at most 2**22 rounded to an integer, half to even. Triton
# keeps the order of sums, which XLA on a CPU does not.
ROUNDS = tl.constexpr(1.5 * 2.0**23)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32


@triton.jit
@no_type_check
def rounded(level):
    """Half to even."""
    return (level + ROUNDS) - ROUNDS


@triton.jit
@no_type_check
def butterfly(x, ROWS: tl.constexpr, WIDTH: tl.constexpr, FAR: tl.constexpr):
    """Each pair of channels that are FAR apart becomes its sum and its difference."""
    pairs = tl.permute(x.reshape(ROWS, WIDTH // (2 * FAR), 2, FAR), (0, 1, 3, 2))
    left, right = tl.split(pairs)
    pairs = tl.join(left + right, left - right)
    return tl.permute(pairs, (0, 1, 3, 2)).reshape(ROWS, WIDTH)


@triton.jit
@no_type_check
def regular_butterfly(x, ROWS: tl.constexpr, WIDTH: tl.constexpr, FAR: tl.constexpr):
    """Each four channels that are FAR apart become their sum less twice the opposite one."""
    fours = tl.permute(x.reshape(ROWS, WIDTH // (4 * FAR), 2, 2, FAR), (0, 1, 4, 2, 3))
    even, odd = tl.split(fours)
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    total = (first + second) + (third + fourth)
    even = tl.join(total - 2 * fourth, total - 2 * second)
    odd = tl.join(total - 2 * third, total - 2 * first)
    return tl.permute(tl.join(even, odd), (0, 1, 3, 4, 2)).reshape(ROWS, WIDTH)


@triton.jit
@no_type_check
def quantize(
    x,  # [m, k]
    shift,  # [b, k] float32
    factor,  # [b, k] float32
    multiplier,  # [k] float32
    given_scale,  # [m] or [1] float32
    given_zero,  # [m] or [1] int8
    codes,  # [m, k]
    scales,  # [m] float32
    zeros,  # [m] int8
    sums,  # [m] int32
    M: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,  # rows with one modulation; 0 without
    EPS: tl.constexpr,
    GELU: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    STAGES: tl.constexpr,  # of the rotation, of blocks of 2**STAGES channels; 0 without
    REGULAR: tl.constexpr,
    ROTATED: tl.constexpr,  # 1 / sqrt(2**STAGES)
    LOW: tl.constexpr,  # the lowest and the highest code
    HIGH: tl.constexpr,
    TOP: tl.constexpr,  # steps in the range of a row
    STEP: tl.constexpr,  # 1 / TOP
    MOST: tl.constexpr,  # range of a row that has codes
    TINY: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    SCALES: tl.constexpr,  # that are given: 0, 1 for all rows, or M
    ZEROS: tl.constexpr,
    FLOAT8: tl.constexpr,
    SUM: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,  # K, padded
    CAPABILITY: tl.constexpr,
):
    """ROWS rows. Channels past K are 0 until they are codes."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channels = tl.arange(0, WIDTH)
    here, there = rows < M, channels < K
    inside = here[:, None] & there[None, :]
    place = rows[:, None] * K + channels[None, :]
    v = tl.load(x + place, mask=inside, other=0).to(tl.float32)  # [rows, width]

    if GROUP > 0:
        v -= (tl.sum(v, axis=1) * (1 / K))[:, None]
        v = tl.where(inside, v, 0)
        variance = tl.sum(v * v, axis=1) * (1 / K)
        v *= tl.rsqrt(variance + EPS)[:, None]
        if GROUP % ROWS == 0:
            of_group = tl.program_id(0) * ROWS // GROUP * K + channels
            v *= tl.load(factor + of_group, mask=there, other=0)[None, :]
            v += tl.load(shift + of_group, mask=there, other=0)[None, :]
        else:
            of_row = (rows // GROUP)[:, None] * K + channels[None, :]
            v *= tl.load(factor + of_row, mask=inside, other=0)
            v += tl.load(shift + of_row, mask=inside, other=0)
    if GELU:
        # x / (1 + exp(-2 u)) equals 0.5 x (1 + tanh(u)); 1.5957691216057308 is 2 sqrt(2 / pi).
        v = v / (1 + tl.exp(-1.5957691216057308 * (v + 0.044715 * v * v * v)))
    if MULTIPLIER:
        v *= tl.load(multiplier + channels, mask=there, other=0)[None, :]
    if STAGES > 0:
        if REGULAR:
            for stage in tl.static_range(0, STAGES, 2):
                v = regular_butterfly(v, ROWS, WIDTH, 1 << stage)
        else:
            for stage in tl.static_range(STAGES):
                v = butterfly(v, ROWS, WIDTH, 1 << stage)
        v *= ROTATED

    size = tl.abs(v)
    size = tl.where(size <= LARGEST, size, float("inf"))  # NaN too: maxima leave it out
    if SCALES > 0:
        finite = tl.max(size, axis=1) <= LARGEST
        scale = tl.load(given_scale + (rows if SCALES > 1 else rows * 0), mask=here, other=1)
        inverse = tl.div_rn(tl.full((ROWS,), 1, tl.float32), scale)
        zero = tl.zeros((ROWS,), tl.float32)
        if ZEROS > 0:
            zero = tl.load(given_zero + (rows if ZEROS > 1 else rows * 0), mask=here, other=0).to(tl.float32)
    else:
        low = tl.zeros((ROWS,), tl.float32)
        if SYMMETRIC:
            extent = tl.max(size, axis=1)
        else:
            low = tl.min(tl.minimum(v, 0), axis=1)
            extent = tl.max(tl.where(size <= LARGEST, tl.maximum(v, 0), float("inf")), axis=1) - low
        finite = extent <= MOST  # not for NaN
        extent = tl.where(finite, tl.maximum(extent, TINY), 1)
        inverse = tl.where(finite, tl.div_rn(tl.full((ROWS,), TOP, tl.float32), extent), 0)
        scale = extent * STEP
        zero = tl.zeros((ROWS,), tl.float32)
        if not SYMMETRIC:
            zero = tl.where(finite, LOW - rounded(tl.where(finite, low, 0) * inverse), 0)
            tl.store(zeros + rows, zero.to(tl.int8), mask=here)
    tl.store(scales + rows, tl.where(finite, scale, float("nan")), mask=here)

    level = v * inverse[:, None]
    level = tl.where(level == level, level, 0)
    if FLOAT8:
        level = tl.minimum(tl.maximum(level, LOW), HIGH)
        tl.store(codes + place, level.to(tl.float8e4nv), mask=inside)
    else:
        level = rounded(tl.minimum(tl.maximum(level, -512), 512))  # zero points are within 128
        level = tl.minimum(tl.maximum(level + zero[:, None], LOW), HIGH)
        made = level.to(tl.int8)
        tl.store(codes + place, made, mask=inside)
        if SUM:
            total = tl.sum(tl.where(inside, made.to(tl.int32), 0), axis=1)
            tl.store(sums + rows, total, mask=here)
