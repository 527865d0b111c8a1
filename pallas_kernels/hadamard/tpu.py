"""hadamard on TPUs: each row read once and written once, its products on the matrix unit.

    bytes of a bfloat16 row of k channels: 2 k in, 4 k out; at the 819 GB/s of a TPU v5e that is
    69 us for [8192, 1152]; blocks up to 128 need 3 * 2 * 128 operations a channel for float32 rows, which
    at 197 TFLOP/s are 37 us, and a third of that for bfloat16 rows

XLA's products put blocks of 32 channels, say, into rows of 128 lanes, of which the rest stays empty: compiled
for a TPU v5e (libtpu 0.0.42, jax 0.10.2) they keep 151 MB in memory between, for these rows, and the kernel
nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels import lanes, tuning
from pallas_kernels.devices import NO_TPU, default_tpu
from pallas_kernels.hadamard import _lanes


def unsupported(x: jax.Array, *, block: int, regular: bool) -> str | None:
    """Why the kernel cannot run on the default device, or not with these blocks or shapes."""
    if default_tpu() is None:
        return NO_TPU
    return _lanes.misfit(x.shape[1], block, regular) or lanes.misfit(x)


def candidates(x: jax.Array | jax.ShapeDtypeStruct, *, block: int, regular: bool) -> tuning.Choice:
    """All tiles, for `tuning`."""
    facts = {"m": x.shape[0], "k": x.shape[1], "x": x.dtype.name, "block": block, "regular": regular}
    return tuning.Choice(facts, lanes.fitting(*x.shape))


def run(x: jax.Array, *, block: int, regular: bool, tiles: lanes.Tiles | None = None) -> jax.Array:
    """See the contract."""
    chosen = tuning.pick("hadamard", "tpu", candidates(x, block=block, regular=regular), tiles)
    return kernel(x, block=block, regular=regular, tiles=chosen)


def kernel(
    x: jax.Array, *, block: int, regular: bool, tiles: lanes.Tiles, interpret: Any = False
) -> jax.Array:
    """The contract with given tiles, for a TPU or interpreted; asks no device for anything."""
    (m, k), h = x.shape, _lanes.lane_matrix(block, regular)
    rows = pl.BlockSpec((tiles.rows, k), lambda i: (i, 0))
    made: jax.Array = pl.pallas_call(
        functools.partial(_transform_block, block=block, regular=regular),
        grid=(pl.cdiv(m, tiles.rows),),
        in_specs=[rows, pl.BlockSpec(h.shape, lambda i: (0, 0))],
        out_specs=rows,
        out_shape=jax.ShapeDtypeStruct((m, k), jnp.float32),
        compiler_params=lanes.params(grid=1),
        interpret=interpret,
        name="hadamard",
    )(x, h)
    return made


def _transform_block(x: Any, h: Any, y: Any, **options: Any) -> None:
    """Transform the rows of a block. x, y: [rows, k] in vector memory."""
    short = x.dtype == jnp.bfloat16
    y[...] = _lanes.transformed(x[...].astype(jnp.float32), h[...], short=short, **options)
