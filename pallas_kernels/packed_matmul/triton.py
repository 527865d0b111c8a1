"""packed_matmul through jax-triton, on NVIDIA GPUs from Ampere on: the weights are unpacked in the product.

The kernel, that of scaled_matmul (`triton_kernels/product.py`), takes half a row of codes from the low halves
of bytes, then the other half from the high halves: n k bytes from the L2 cache, n k / 2 from memory. Two or
three instructions make four codes. Zero points of w are sums of x here, since w - w_zero has five bits.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import triton_kernels, tuning
from pallas_kernels.packed_matmul._codes import codes
from pallas_kernels.scaled_matmul import _triton
from pallas_kernels.scaled_matmul._triton import Shaped, Tiles
from pallas_kernels.triton_kernels import Run, compiled

MOST = 131071  # codes of a group: their sums are those of 16 times the codes


def unsupported(
    x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array, **options: Any
) -> str | None:
    """Why this product is none for the kernel, here."""
    return triton_kernels.wrong_device() or misfit(x, w, x_scale, w_scale, **options)


def misfit(x: Shaped, w: Shaped, x_scale: Shaped, w_scale: Shaped, **options: Any) -> str | None:
    """Why the kernel cannot compute this product on any device."""
    group = x.shape[1] // w_scale.shape[1]
    if group > MOST:
        return f"it takes groups of at most {MOST} codes, got {group}"
    return _triton.misfit(x, w.shape[0], group, packed=True, **options)


def candidates(x: Shaped, w: Shaped, x_scale: Shaped, w_scale: Shaped, **options: Any) -> tuning.Choice:
    """The best few tiles for a product on the default device, for `tuning`."""
    return _triton.candidates(x, w.shape[0], x.shape[1] // w_scale.shape[1], packed=True, **options)


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
        x, w, x_scale, w_scale, tiles=tuning.pick("packed_matmul", "triton", choice, tiles), **options
    )


def launch(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None = None,
    w_zero: jax.Array | None = None,
    w_sum: jax.Array | None = None,
    tiles: Tiles,
    run: Run = compiled,
    **after: Any,
) -> jax.Array:
    """The contract with these tiles, compiled or interpreted."""
    groups = w_scale.shape[1]

    def sums(each: jax.Array) -> jax.Array:
        return each.reshape(each.shape[0], groups, -1).sum(2, dtype=jnp.int32)

    if x_zero is not None and w_sum is None:
        w_sum = sums(codes(w, w_zero, groups))
    return _triton.product(
        x, w, x_scale, w_scale, packed=True, x_zero=x_zero, w_zero=w_zero,
        x_sum=None if w_zero is None else sums(x), w_sum=None if x_zero is None else w_sum,
        tiles=tiles, run=run, **after,
    )  # fmt: skip
