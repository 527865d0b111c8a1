"""attention through XLA; fits every device. As many heads at a time as have few enough scores.

XLA writes scores to memory, float32 [b, h, n, l]: 2 GiB for two samples of 4096 tokens in 16 heads. Where
they are more than `most_bytes`, a loop takes some heads at a time, or some queries of one head. On a CPU that
many stay in its caches, which pays by itself: 1024 tokens in 16 heads of 72 take 66 ms in float32 head by
head, 181 ms through jax.nn.dot_product_attention (jax 0.10.2, 2 hyperthreads of a shared Xeon, medians of 9).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import devices
from pallas_kernels.attention.reference import codes, masked, smooth


def unsupported(*_: Any, **__: Any) -> str | None:
    """Nothing is."""
    return None


def most_bytes() -> int:
    """Of the scores of one turn."""
    return 2**22 if devices.for_cpu() else 2**28


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
    (b, n, h, d), keys = q.shape, k.shape[1]
    heads: dict[str, Any] = {"q": (q, None), "k": (k, None), "v": v}
    if qk_bits is not None:
        heads |= {"q": codes(q), "k": codes(smooth(k))}
    heads = jax.tree.map(lambda x: x.swapaxes(1, 2).reshape(b * h, x.shape[1], -1), heads)
    for name, given in (("mask", mask), ("bias", bias)):
        if given is not None:
            of_heads = jnp.broadcast_to(given, (b, h, *given.shape[2:]))
            heads[name] = of_heads.reshape(b * h, *given.shape[2:])
    one = partial(of_head, scale=scale, turns=-(-4 * n * keys // most_bytes()))
    at_once = max(1, most_bytes() // (4 * n * keys))
    if at_once >= b * h:
        y = jax.vmap(one)(heads)
    else:
        y = lax.map(one, heads, batch_size=None if at_once == 1 else at_once)
    return y.reshape(b, h, n, d).swapaxes(1, 2)


def of_head(head: dict[str, Any], *, scale: float, turns: int) -> jax.Array:
    """[n, d] of one head, its queries in that many turns."""
    if turns <= 1:
        return of_queries(head, scale=scale)
    n = head["q"][0].shape[0]
    size = -(-n // turns)
    turns = -(-n // size)

    def cut(x: jax.Array) -> jax.Array:  # [n, ...] -> [turns, size, ...]; the last queries are filled up
        return jnp.pad(x, [(0, turns * size - n), (0, 0)]).reshape(turns, size, -1)

    names = ["q", *(name for name in ("mask", "bias") if name in head and head[name].shape[0] == n)]
    own = {name: jax.tree.map(cut, head[name]) for name in names}
    y = lax.map(lambda part: of_queries({**head, **part}, scale=scale), own)
    return y.reshape(turns * size, -1)[:n]


def of_queries(head: dict[str, Any], *, scale: float) -> jax.Array:
    """softmax(q k^T * scale + bias) v of some queries of a head: p meets v before its division."""
    (q, q_scale), (k, k_scale), v = head["q"], head["k"], head["v"]
    if q_scale is None:
        s = _dot(q, k.T) * np.float32(scale)
    else:
        s = _dot(q, k.T).astype(jnp.float32) * (q_scale * np.float32(scale)) * k_scale.T
    s = masked(s, head.get("mask"), head.get("bias"))
    p = jnp.exp(s - s.max(-1, keepdims=True))
    y = _dot(p.astype(v.dtype), v) / p.sum(-1, keepdims=True)
    return y.astype(v.dtype)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Exact sums of codes; float32 sums of floats, and float32 means float32."""
    of = jnp.int32 if a.dtype == jnp.int8 else jnp.float32
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=of)
