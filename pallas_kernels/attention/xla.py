"""attention through XLA; fits every device. It writes the scores to memory: queries go in turns.

The scores of all queries are float32 [b, h, n, l]: 2 GiB for two samples of 4096 tokens in 16 heads. Where
they are over MOST_BYTES, a loop takes as many queries at a time as have that many.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.attention.reference import codes, masked, scores, smooth

MOST_BYTES = 2**28  # of the scores of one turn


def unsupported(*_: Any, **__: Any) -> str | None:
    """Nothing is."""
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
    (b, n, h, _), keys = q.shape, k.shape[1]
    attend: Callable[..., jax.Array]
    if qk_bits is None:
        attend = partial(in_floats, k=k, v=v, scale=scale)
    else:
        attend = partial(in_codes, k=codes(smooth(k)), v=v, scale=scale)
    turns = min(n, -(-4 * b * h * n * keys // MOST_BYTES))
    if turns == 1:
        return attend(q, mask=mask, bias=bias)
    return in_turns(attend, q, mask, bias, turns)


def in_floats(
    q: jax.Array, *, k: jax.Array, v: jax.Array, scale: float, mask: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    """softmax(q k^T * scale + bias) v; float32 means float32."""
    if q.dtype == jnp.float16:  # dot_product_attention would sum its products with v in float16 on a CPU
        s = jnp.einsum("bnhd,blhd->bhnl", q, k, preferred_element_type=jnp.float32) * np.float32(scale)
        return of_scores(masked(s, mask, bias), v)
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else "default"):
        return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale, implementation="xla")


def in_codes(
    q: jax.Array,
    *,
    k: tuple[jax.Array, jax.Array],
    v: jax.Array,
    scale: float,
    mask: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """The same with the codes of the keys."""
    return of_scores(masked(scores(codes(q), k, scale), mask, bias), v)


def of_scores(s: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(s) v, of probabilities in the type of v, summed in float32."""
    precision = lax.Precision.HIGHEST if v.dtype == jnp.float32 else None
    p = jax.nn.softmax(s).astype(v.dtype)
    y = jnp.einsum("bhnl,blhd->bnhd", p, v, precision=precision, preferred_element_type=jnp.float32)
    return y.astype(v.dtype)


def in_turns(
    attend: Callable[..., jax.Array],
    q: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    turns: int,
) -> jax.Array:
    """What `attend` gives of all queries, from that many loops of equally many; the last are filled up."""
    n = q.shape[1]
    size = -(-n // turns)
    turns = -(-n // size)

    def cut(x: jax.Array, axis: int) -> jax.Array:  # [.. n ..] -> [turns .. size ..]
        missing = [(0, turns * size - n if i == axis else 0) for i in range(x.ndim)]
        parts = jnp.pad(x, missing).reshape(*x.shape[:axis], turns, size, *x.shape[axis + 1 :])
        return jnp.moveaxis(parts, axis, 0)

    extras = {"mask": mask, "bias": bias}
    own = {name: cut(x, 2) for name, x in extras.items() if x is not None and x.shape[2] > 1}
    shared = {name: x for name, x in extras.items() if name not in own}
    y = lax.map(lambda part: attend(part[0], **shared, **part[1]), (cut(q, 1), own))
    return jnp.moveaxis(y, 0, 1).reshape(q.shape[0], turns * size, *q.shape[2:])[:, :n]
