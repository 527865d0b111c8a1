"""scaled_matmul of int8 codes through jax-triton, on NVIDIA GPUs from Ampere on: the extra `triton`.

    m n k / (1024 int8 products a cycle and multiprocessor of an A100): 33 us for [8192, 1152] x [1152, 1152]
    of which x, w and y are 28 MB, 16 us at its 1.75 TB/s; nothing of this was measured

The kernel is in `triton_kernels/product.py`; w may have rows of any number, x of any number, and codes come
sixteen at a time. On Hopper `mosaic_gpu` is asked first.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import triton_kernels, tuning
from pallas_kernels.scaled_matmul import _triton
from pallas_kernels.scaled_matmul._triton import Shaped, Tiles
from pallas_kernels.triton_kernels import Run, compiled


def unsupported(
    x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array, **options: Any
) -> str | None:
    """Why this product is none for the kernel, here."""
    return triton_kernels.wrong_device() or misfit(x, w, x_scale, w_scale, **options)


def misfit(x: Shaped, w: Shaped, x_scale: Shaped, w_scale: Shaped, **options: Any) -> str | None:
    """Why the kernel cannot compute this product on any device."""
    return _triton.misfit(x, w.shape[0], x.shape[1] // w_scale.shape[1], packed=False, **options)


def candidates(x: Shaped, w: Shaped, x_scale: Shaped, w_scale: Shaped, **options: Any) -> tuning.Choice:
    """The best few tiles for a product on the default device, for `tuning`."""
    return _triton.candidates(x, w.shape[0], x.shape[1] // w_scale.shape[1], packed=False, **options)


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
    choice = candidates(x, w, x_scale, w_scale, **options)
    return launch(
        x, w, x_scale, w_scale, tiles=tuning.pick("scaled_matmul", "triton", choice, tiles), **options
    )


def launch(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None = None,
    w_zero: jax.Array | None = None,
    x_sum: jax.Array | None = None,
    w_sum: jax.Array | None = None,
    tiles: Tiles,
    run: Run = compiled,
    **after: Any,
) -> jax.Array:
    """The contract with these tiles, compiled or interpreted."""
    group, groups = x.shape[1] // w_scale.shape[1], w_scale.shape[1]

    def sums(codes: jax.Array) -> jax.Array:
        return codes.reshape(codes.shape[0], groups, group).sum(2, dtype=jnp.int32)

    if w_zero is not None and x_sum is None:
        x_sum = sums(x)
    if x_zero is not None:
        w_sum = sums(w) if w_sum is None else w_sum
        w_sum = w_sum if w_zero is None else w_sum - group * w_zero.astype(jnp.int32)
    return _triton.product(
        x, w, x_scale, w_scale, packed=False,
        x_zero=x_zero, w_zero=w_zero, x_sum=x_sum, w_sum=w_sum, tiles=tiles, run=run, **after,
    )  # fmt: skip
