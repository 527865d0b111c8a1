"""Softmax attention; on request with 8-bit queries and keys, whose smoothing is exact."""

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels import dispatch


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    *,
    mask: Bool[Array, "#b #h #n l"] | None = None,
    bias: Float[Array, "#b #h #n l"] | None = None,
    scale: float | None = None,
    qk_bits: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n h d"]:
    """softmax(q k^T * scale + bias) v for each sample and head; the softmax is in float32.

    With q [n, d], k and v [l, d] of one sample and head:

        s = float32(q @ k.T) * scale                               float32 sums, where qk_bits is None
        s = float32(a @ c.T) * (a_scale * scale) * c_scale.T       exact int32 sums, where qk_bits is 8
            a, a_scale = quantize_rows(q)                          int8 codes, a scale a token, both
            c, c_scale = quantize_rows(k - mean(k))                mean over the l tokens, in float32
        s = s + bias                                               float32
        s = where(mask, s, -0.7 * largest float32)
        p = exp(s - max(s))                                        float32, as is the sum over a row
        y = (p / sum(p)) @ v                                       float32 sums
        return q.dtype(y)                                          one rounding

    q, k, v: of one float type. scale: 1 / sqrt(d) where not given. mask: False keys take no part; a query all
    of whose keys are masked takes an equal part of every value.

    Without its mean a row of s changes by one number, -a_scale a . mean(k), which the softmax does not see:
    what all keys share, as an outlier channel of keys is, costs no codes. Source of the 8-bit form:
    SageAttention, arXiv 2410.02367, sections 3.2 and 3.3 (there a scale may be shared by a block of tokens).

    An implementation may sum in its own order, and round p, before or after its division, to the type of v.
    So at most 0.1 % of the codes c are off by one, and their scales by a factor of 1 + 2**-20. For the rest,
    an s that is off by e makes an output off by 2 e sum(|p v|) / sum(p), and what follows adds 2 u + (l + 8)
    2**-24 times the same, where u is 2**-8 for bfloat16, 2**-11 for float16, 0 for float32.
    """
    check(q, k, v, mask, bias, qk_bits)
    scale = float(1 / np.sqrt(q.shape[-1])) if scale is None else scale
    return dispatch.run(
        "attention", implementation, q, k, v, mask=mask, bias=bias, scale=scale, qk_bits=qk_bits
    )


def check(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    bias: jax.Array | None,
    qk_bits: int | None,
) -> None:
    """Raises ValueError where the operands do not go together."""
    (b, n, h, d), keys = q.shape, k.shape[1]
    if k.shape != (b, keys, h, d) or v.shape != k.shape:
        raise ValueError(
            f"q is {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}; give [batch, tokens, heads,"
            f" numbers] that differ in the tokens of q alone."
        )
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise ValueError(f"q is {q.dtype}, k {k.dtype}, v {v.dtype}; cast them to one type.")
    if qk_bits not in (None, 8):
        raise ValueError(f"queries and keys of {qk_bits} bits do not exist here; choose None or 8.")
    for name, given in (("mask", mask), ("bias", bias)):
        shape = (b, h, n, keys)
        if given is not None and (
            given.ndim != 4
            or given.shape[3] != keys
            or any(have not in (1, want) for have, want in zip(given.shape, shape, strict=True))
        ):
            raise ValueError(
                f"the {name} is {list(given.shape)}; give {list(shape)}, or 1 for a number but the last,"
                f" where all share one."
            )
