"""attention as its contract reads: all in float32, p is not rounded, and all scores are in memory at once."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.quantize_rows import reference as quantize_rows

LOWEST = np.float32(-0.7 * np.finfo(np.float32).max)  # minus a score it is no infinity


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
    if qk_bits is None:
        q32, k32 = (x.astype(jnp.float32) for x in (q, k))
        s = jnp.einsum("bnhd,blhd->bhnl", q32, k32, precision=lax.Precision.HIGHEST) * np.float32(scale)
    else:
        s = scores(codes(q), codes(smooth(k)), scale)
    s = masked(s, mask, bias)
    p = jnp.exp(s - s.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    y = jnp.einsum("bhnl,blhd->bnhd", p, v.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    return y.astype(q.dtype)


def smooth(k: jax.Array) -> jax.Array:
    """Keys [b, l, h, d] without their mean over the tokens, float32."""
    k = k.astype(jnp.float32)
    return k - k.mean(1, keepdims=True)


def codes(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int8 codes [b, n, h, d] of queries or keys, and the scale of each token, [b, n, h, 1]."""
    rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
    found, scale, *_ = quantize_rows.quantized(
        rows, bits=8, symmetric=True, dtype=jnp.int8, scale=None, zero=None, with_sum=False
    )
    return found.reshape(x.shape), scale.reshape(*x.shape[:-1], 1)


def scores(q: tuple[jax.Array, jax.Array], k: tuple[jax.Array, jax.Array], scale: float) -> jax.Array:
    """[b, h, n, l] of codes and their scales."""
    (a, a_scale), (c, c_scale) = q, k
    acc = jnp.einsum("bnhd,blhd->bhnl", a, c, preferred_element_type=jnp.int32)
    of_queries, of_keys = (
        s[..., 0].swapaxes(1, 2) for s in (a_scale * np.float32(scale), c_scale)
    )  # [b h n]
    return acc.astype(jnp.float32) * of_queries[..., None] * of_keys[:, :, None]


def masked(s: jax.Array, mask: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """Scores with the bias, and those that take no part at the lowest number."""
    s = s if bias is None else s + bias.astype(jnp.float32)
    return s if mask is None else jnp.where(mask, s, LOWEST)
