"""hadamard on NVIDIA GPUs: butterflies in registers, each row read once and written once.

    bytes of a bfloat16 row of k channels: 2 k in, 4 k out; at the 3.0 TB/s of an H100 that is
    19 us for [8192, 1152]; XLA's products read and write float32 rows two or three times

Blocks do not depend on each other, so rows are cut into short ones of whole blocks first.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import instructions, tuning
from pallas_kernels.compat import COMPILED, LEAST_CAPABILITY, Target
from pallas_kernels.devices import NO_GPU, default_gpu
from pallas_kernels.hadamard import _registers as registers
from pallas_kernels.rows import CANDIDATES, Tiles, fitting, ranked

LENGTH = 1024  # of a row after the cut, where blocks are no longer


def unsupported(x: jax.Array, *, block: int, regular: bool) -> str | None:
    """Why the kernel cannot run on the default device, or not with these blocks or shapes."""
    gpu = default_gpu()
    if gpu is None:
        return NO_GPU
    if gpu.capability < LEAST_CAPABILITY:
        return f"{gpu.name} has compute capability {gpu.capability}, and {LEAST_CAPABILITY} is needed"
    if (reason := registers.misfit(block, regular)) is not None:
        return reason
    if not fitting_tiles(x, block=block, regular=regular):
        return (
            f"{x.size // block} blocks of {block} channels do not fill warps, as multiples of 128 channels do"
        )
    return None


def fitting_tiles(x: jax.Array | jax.ShapeDtypeStruct, *, block: int, regular: bool) -> list[Tiles]:
    """All, of rows after the cut, such that a warp has whole blocks; the best first."""
    m, k = cut(x.shape[0], x.shape[1], block)
    return ranked([each for each in fitting(m, k) if registers.misfit(block, regular, each) is None], k)


def candidates(x: jax.Array | jax.ShapeDtypeStruct, *, block: int, regular: bool) -> tuning.Choice:
    """The best few tiles, for `tuning`."""
    facts = {"m": x.shape[0], "k": x.shape[1], "x": x.dtype.name, "block": block, "regular": regular}
    return tuning.Choice(facts, fitting_tiles(x, block=block, regular=regular)[:CANDIDATES])


def run(x: jax.Array, *, block: int, regular: bool, tiles: Tiles | None = None) -> jax.Array:
    """See the contract."""
    chosen = tuning.pick("hadamard", "mosaic_gpu", candidates(x, block=block, regular=regular), tiles)
    return kernel(x, block=block, regular=regular, tiles=chosen)


def cut(m: int, k: int, block: int) -> tuple[int, int]:
    """The shape of shorter rows: whole blocks, wide loads, and at most LENGTH unless a block is longer."""
    lengths = [block * n for n in range(1, k // block + 1) if k // block % n == 0]
    length = max((n for n in lengths if n <= max(LENGTH, block)), key=lambda n: (math.gcd(n, 256), n))
    return m * k // length, length


def kernel(x: jax.Array, *, block: int, regular: bool, tiles: Tiles, target: Target = COMPILED) -> jax.Array:
    """The contract with given tiles, of the rows after the cut; asks no device for anything."""
    m, k = cut(len(x), x.shape[1], block)
    body = functools.partial(_transform_block, block=block, regular=regular, tiles=tiles, target=target)
    made = target.kernel(
        body,
        kernel_name="hadamard",
        out_type=jax.ShapeDtypeStruct((m, k), jnp.float32),
        grid=(m // tiles.rows,),
        grid_names=("block",),
        auto_barriers=False,  # nothing is read that a kernel writes
    )(x.reshape(m, k))
    return made.reshape(x.shape)


def _transform_block(x: Any, y: Any, *, block: int, regular: bool, tiles: Tiles, target: Target) -> None:
    """Transform `tiles.rows` rows. x, y: in global memory."""
    layout, width = tiles.layout(), tiles.shape[-1]
    start = lax.axis_index("block") * tiles.rows
    rows = start if tiles.rows == 1 else pl.ds(start, tiles.rows)
    columns = [pl.ds(channel, width) for channel in range(0, x.shape[1], width)]
    pieces = [target.load(x, (rows, column), layout=layout, optimized=False) for column in columns]
    exchange = functools.partial(instructions.exchange, vector=tiles.vector, target=target, layout=layout)
    pieces = [piece.astype(jnp.float32) for piece in pieces]
    made = registers.transformed(pieces, block=block, regular=regular, exchange=exchange)
    for column, piece in zip(columns, made, strict=True):
        y[rows, column] = piece
