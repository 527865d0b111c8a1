"""Float attention by cuDNN's flash attention, through JAX: no scores in memory.

It takes numbers a head in multiples of 8 (72 is one); others are filled up with zeros, which change no sum.
What a mask shuts out gets a bias instead, in the type of q, of one row a query. Lowered, never run.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.devices import NO_GPU, Gpu, default_gpu

FLOATS = (jnp.bfloat16, jnp.float16)
CAPABILITY = (8, 0)
VECTOR = 8  # that the numbers of a head must be a multiple of
MOST, MOST_ON_HOPPER = 128, 256  # numbers of a head


def unsupported(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> str | None:
    """Why this attention is none for cuDNN, here."""
    gpu = default_gpu()
    return wrong_device(gpu) or misfit(q, gpu, **options)


def wrong_device(gpu: Gpu | None) -> str | None:
    """Why cuDNN has no flash attention on a device."""
    if gpu is None:
        return NO_GPU
    if gpu.capability < CAPABILITY:
        major, minor = gpu.capability
        return f"it needs compute capability 8.0, and {gpu.name} has {major}.{minor}"
    return None


def misfit(
    q: jax.Array,
    gpu: Gpu | None,
    *,
    mask: jax.Array | None,
    bias: jax.Array | None,
    qk_bits: int | None,
    **_: Any,
) -> str | None:
    """Why it cannot compute this attention on that device."""
    size = q.shape[-1]
    if qk_bits is not None:
        return f"it multiplies queries and keys as floats, and codes of {qk_bits} bits were asked for"
    if q.dtype not in FLOATS:
        return f"it takes bfloat16 or float16, not {q.dtype}"
    most = MOST_ON_HOPPER if gpu is not None and gpu.capability >= (9, 0) else MOST
    if size > most:
        return f"it takes at most {most} numbers a head on this device, got {size}"
    if bias is not None and bias.dtype != q.dtype:
        return f"it adds a bias of the type of q, {q.dtype}, and this one is {bias.dtype}"
    if mask is not None and q.dtype == jnp.float16:
        return "a mask becomes a bias, and float16 has no number low enough; take bfloat16"
    return None


def run(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None,
    bias: jax.Array | None,
    scale: float,
    qk_bits: int | None,
) -> jax.Array:
    """See the contract."""
    size, rows = q.shape[-1], (q.shape[1], k.shape[1])
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -size % VECTOR))) for x in (q, k, v))
    bias, mask = (x if x is None else jnp.broadcast_to(x, (*x.shape[:2], *rows)) for x in (bias, mask))
    y = jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale, implementation="cudnn")
    return y[..., :size]
