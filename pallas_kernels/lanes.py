"""Rows in the vector memory of a TPU: how a Mosaic TPU kernel that reads whole rows cuts them into blocks.

The last block may be over the end of an array. What it then reads there is anything, and what it writes
there is dropped; rows do not influence each other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

MEMORY = 14 * 2**20  # bytes for the rows of a block; a kernel has 16 MiB by default, on a TPU v5e say
BYTES = 24  # of a channel of a row: two copies going in, two going out, and what is between (libtpu 0.0.42)
ROWS = (128, 64, 32, 256)  # of a block, the best first: 128 fill the matrix unit, 32 a register of int8


class Tiles(NamedTuple):
    """How many rows a block has."""

    rows: int


def fitting(m: int, k: int) -> list[Tiles]:
    """All for m rows of k channels, the best first."""
    fit = [min(rows, m) for rows in ROWS if rows * k * BYTES <= MEMORY]
    return [Tiles(rows) for rows in dict.fromkeys(fit)]


def misfit(x: jax.Array) -> str | None:
    """Why blocks of such rows do not fit a TPU, or None."""
    if x.dtype not in (jnp.bfloat16, jnp.float32):
        return f"it takes rows of bfloat16 or float32, and {x.dtype} was given"
    if not len(x):
        return "no rows were given"
    longest = MEMORY // (min(ROWS) * BYTES)
    if x.shape[1] > longest:
        return f"rows of {x.shape[1]} channels do not fit vector memory, where {longest} do"
    return None


def params(grid: int) -> Any:
    """Of a kernel whose blocks, along so many axes of its grid, do not depend on each other."""
    return pltpu.CompilerParams(dimension_semantics=(pltpu.PARALLEL,) * grid)


def as_row(column: jax.Array) -> jax.Array:
    """[rows, 1] as [1, rows], in a kernel: an array of one column would take 128 times its size."""
    square = (len(column), len(column))
    diagonal = lax.broadcasted_iota(jnp.int32, square, 0) == lax.broadcasted_iota(jnp.int32, square, 1)
    return jnp.where(diagonal, column, 0).sum(0, keepdims=True, dtype=column.dtype)
