"""packed_matmul on Hopper: the weights are unpacked to int8 in a pass of their own, then multiplied as such.

The pass reads n * k / 2 bytes and writes n * k, which the product then reads, mostly from the L2 cache. By
arithmetic, at 3.0 TB/s, it is 3% of the time of a product of 8192 rows. With few rows it is the longest part,
and nothing is gained from weights of four bits but memory.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import tuning
from pallas_kernels.devices import default_gpu
from pallas_kernels.packed_matmul._codes import codes
from pallas_kernels.scaled_matmul import mosaic_gpu
from pallas_kernels.scaled_matmul._sm90 import Tiles
from pallas_kernels.scaled_matmul.mosaic_gpu import Shaped


def unsupported(
    x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array, **options: Any
) -> str | None:
    """Why this product is none for the kernel, here."""
    return mosaic_gpu.wrong_device(default_gpu()) or misfit(x, w, x_scale, w_scale, **options)


def misfit(x: Shaped, w: Shaped, x_scale: Shaped, w_scale: Shaped, **options: Any) -> str | None:
    """Why the kernel cannot compute this product on any device."""
    unpacked = jax.ShapeDtypeStruct((w.shape[0], 2 * w.shape[1]), jnp.int8)
    return mosaic_gpu.misfit(x, unpacked, x_scale, w_scale, **options)


def launch(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    w_zero: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """The contract, with the options of `launch` of scaled_matmul; asks no device."""
    return mosaic_gpu.launch(x, codes(w, w_zero, w_scale.shape[1]), x_scale, w_scale, **options)


def candidates(
    x: Shaped, w: Shaped, x_scale: Shaped, w_scale: Shaped, *, w_zero: Shaped | None, **options: Any
) -> tuning.Choice:
    """Those of the product of unpacked weights: they have no zero points left."""
    del w_zero
    unpacked = jax.ShapeDtypeStruct((w.shape[0], 2 * w.shape[1]), jnp.int8)
    return mosaic_gpu.candidates(x, unpacked, x_scale, w_scale, **options)


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    tiles: Tiles | None = None,
    **options: Any,
) -> jax.Array:
    """See the contract."""
    gpu = default_gpu()
    assert gpu is not None  # unsupported has said so
    choice = candidates(x, w, x_scale, w_scale, **options)
    chosen = tuning.pick("packed_matmul", "mosaic_gpu", choice, tiles)
    return launch(x, w, x_scale, w_scale, cores=gpu.cores, tiles=chosen, **options)
