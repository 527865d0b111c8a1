"""What the products in Triton share: limits, tiles, and the operands of the kernel in `triton_kernels`."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels import tuning
from pallas_kernels.devices import default_gpu
from pallas_kernels.triton_kernels import MOST_ELEMENTS, Program, Run

Shaped = jax.Array | jax.ShapeDtypeStruct
ALIGNED = 16  # codes that one load takes
LEAST_DEPTH = 32  # of a product of int8 codes
FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)
BAND = 8  # tiles of rows that take turns with the columns
CANDIDATES = 8  # tiles that are worth a measurement


class Tiles(NamedTuple):
    """How a block of threads computes a tile of y."""

    rows: int
    columns: int
    depth: int  # codes of a step
    warps: int
    stages: int  # steps that are loaded ahead, and the one that is computed


# Rows and columns of tiles, and warps: few enough sums in a thread that nothing spills (ptxas of CUDA 13).
SHAPES = ((128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (32, 64, 4), (16, 64, 4))
ALONE = (
    128,
    256,
    8,
)  # one block of a multiprocessor, so no other one works while it writes; for few operands
SHAPES_OF_GROUPS = (
    (128, 64, 8),
    (64, 128, 8),
    (64, 64, 4),
    (32, 64, 4),
    (16, 64, 4),
)  # sums twice: of all too
DEPTHS = (64, 128)
STAGES = 4
SHARED = {(8, 0): 163, (8, 7): 163, (9, 0): 227, (10, 0): 227}  # KiB of a block
LEAST_SHARED = 99  # of any other device


def kernel() -> Any:
    """It needs Triton to be imported."""
    from pallas_kernels.triton_kernels.product import product

    return product


def misfit(
    x: Shaped,
    n: int,
    group: int,
    *,
    packed: bool,
    residual: Shaped | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    **_: Any,
) -> str | None:
    """Why the kernel cannot compute a product with n rows of w, in groups of so many codes, on any device."""
    m, k = x.shape
    if x.dtype != jnp.int8:
        return (
            f"it takes int8 codes, not {x.dtype}: the tensor cores keep fewer bits of a float8 sum than the"
            f" contract asks for"
        )
    if 0 in (m, n, k):
        return f"it needs codes, got m={m}, k={k}, n={n}"
    if packed and (k // 2 % LEAST_DEPTH or group % LEAST_DEPTH):
        return (
            f"it needs groups, and halves of a row, of a multiple of {LEAST_DEPTH} codes, got groups of"
            f" {group} and halves of {k // 2}"
        )
    if k % ALIGNED or group % ALIGNED:
        return f"it needs groups of a multiple of {ALIGNED} codes, got {group}"
    if out_dtype not in FLOATS:
        return f"it writes bfloat16, float16 or float32, not {jnp.dtype(out_dtype)}"
    if max(m * n, m * k, n * k) > MOST_ELEMENTS:
        return f"it takes arrays of at most {MOST_ELEMENTS} elements, got m={m}, k={k}, n={n}"
    return None


def ranked_tiles(
    m: int, n: int, k: int, group: int, *, packed: bool, few: bool, capability: tuple[int, int], cores: int
) -> list[Tiles]:
    """The best few that fit: those that keep the most of a device busy, and of these those that load least.

    few: scales and a bias are all that the epilogue takes. Blocks take tiles in waves, and the last wave is
    not full. That a tile of 64 x 64 takes twice as long for a product as one without loads would is a guess:
    no device was there to measure.
    """
    shared = 1024 * SHARED.get(capability, LEAST_SHARED)
    whole = math.gcd(group, k // 2) if packed else group
    whole &= -whole  # the largest power of two in it
    depths = [depth for depth in DEPTHS if depth <= whole] or [max(LEAST_DEPTH, min(whole, DEPTHS[0]))]
    if group < k:
        depths = depths[-1:]  # a step that is a whole group needs no loop inside the loop
    shapes = SHAPES_OF_GROUPS if group < k else (*SHAPES, *([ALONE] if few else []))
    found = []
    for rows, columns, warps in shapes:
        if 4 * rows * columns > shared:  # y changes its layout there
            continue
        for depth in depths:
            stages = min(STAGES, shared // ((rows + columns) * depth))
            if stages >= 2:
                found.append(Tiles(rows, columns, depth, warps, stages))

    def merit(tiles: Tiles) -> tuple[bool, float]:
        waves = pl.cdiv(pl.cdiv(m, tiles.rows) * pl.cdiv(n, tiles.columns), cores)
        busy = m * n / (waves * cores * tiles.rows * tiles.columns)
        return tiles[:2] != ALONE[:2], busy / (1 + 32 / tiles.rows + 32 / tiles.columns)

    return sorted(found, key=merit, reverse=True)[:CANDIDATES]  # of equal ones, the smaller depth


def candidates(
    x: Shaped, n: int, group: int, *, packed: bool, out_dtype: DTypeLike, **options: Any
) -> tuning.Choice:
    """The best few tiles for a product on the default device, for `tuning`."""
    gpu = default_gpu()
    assert gpu is not None  # unsupported has said so
    m, k = x.shape
    given = sorted(name for name, value in options.items() if value is not None)
    facts = {
        "m": m,
        "k": k,
        "n": n,
        "groups": k // group,
        "operands": "+".join(given),
        "out": jnp.dtype(out_dtype).name,
    }
    tiles = ranked_tiles(
        m, n, k, group, packed=packed, few=set(given) <= {"bias"}, capability=gpu.capability, cores=gpu.cores
    )
    return tuning.Choice(facts, tiles)


def product(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    packed: bool,
    x_zero: jax.Array | None,
    w_zero: jax.Array | None,
    x_sum: jax.Array | None,
    w_sum: jax.Array | None,
    bias: jax.Array | None,
    activation: str | None,
    residual: jax.Array | None,
    gate: jax.Array | None,
    out_dtype: DTypeLike,
    tiles: Tiles,
    run: Run,
) -> jax.Array:
    """The contract with these tiles; asks no device.

    x_sum: of the codes of x over each group, if w has zero points. w_sum: of the codes of w less their zero
    points, if x has zero points.
    """
    (m, k), (n, groups) = x.shape, (w.shape[0], w_scale.shape[1])

    def vectors(each: jax.Array | None, length: int) -> jax.Array | None:  # [groups, length]
        return None if each is None else jnp.broadcast_to(_wide(each), (length, groups)).T

    def vector(each: jax.Array | None) -> jax.Array | None:
        return None if each is None else jnp.broadcast_to(_wide(each)[:, 0], m)

    operands = {
        "x": x,
        "w": w,
        "x_scale": vector(x_scale),
        "w_scale": vectors(w_scale, n),
        "x_zero": vector(x_zero),
        "w_sum": vectors(w_sum, n),
        "x_sum": vectors(x_sum, m),
        "w_zero": vectors(w_zero, n),
        "bias": bias,
        "residual": residual,
        "gate": gate,
    }
    constants = {
        "M": m,
        "N": n,
        "K": k,
        "GROUP": k // groups,
        "PACKED": packed,
        "X_ZERO": x_zero is not None,
        "W_ZERO": w_zero is not None,
        "BIAS": bias is not None,
        "GELU": activation is not None,
        "RESIDUAL": residual is not None,
        "IMAGE": 0 if gate is None else m // gate.shape[0],
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "DEPTH": tiles.depth,
        "BAND": BAND,
    }
    blocks = pl.cdiv(m, tiles.rows) * pl.cdiv(n, tiles.columns)
    y = {"y": jax.ShapeDtypeStruct((m, n), out_dtype)}
    program = Program(kernel, operands, y, blocks, constants, tiles.warps, tiles.stages)
    return run(program)["y"]


def _wide(each: jax.Array) -> jax.Array:
    """Zero points as int32, which the kernel would make of them in every block; others as they are."""
    return each.astype(jnp.int32) if each.dtype == jnp.int8 else each
