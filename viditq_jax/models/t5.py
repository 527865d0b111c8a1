"""The encoder of T5 v1.1, which turns captions into the text features of PixArt, STDiT and Latte.

It has no position table and no biases, and attention scores are not divided by sqrt(d). A learned bias on the
distance of two tokens, owned by the first block, is added to the scores of every block.
Module names are those of the transformers checkpoints. float16 overflows; bfloat16 and float32 work.
Source: T5, arXiv 1910.10683; gated feed-forward as in version 1.1, arXiv 2002.05202.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from viditq_jax.net import draw
from viditq_jax.nn.attention import attention, merge_heads, split_heads
from viditq_jax.nn.linear import Linear
from viditq_jax.nn.norm import RMSNorm


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between sizes; field names are those of transformers. `d_kv` is the width of one head."""

    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    d_kv: int = 64
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


CONFIGS = {
    "t5-v1_1-xxl": Config(num_layers=24, d_model=4096, d_ff=10240, num_heads=64),  # 4,762,310,656 parameters
    "t5-v1_1-xl": Config(num_layers=24, d_model=2048, d_ff=5120, num_heads=32),
    "t5-v1_1-large": Config(num_layers=24, d_model=1024, d_ff=2816, num_heads=16),
    "t5-v1_1-base": Config(num_layers=12, d_model=768, d_ff=2048, num_heads=12),
    "t5-v1_1-small": Config(num_layers=8, d_model=512, d_ff=1024, num_heads=6),
}


def distance_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each key's distance to each query, int32 [length (queries), length (keys)].

    Half of the buckets are for keys after the query. In each half, the first half holds one distance each,
    the rest grow geometrically up to `max_distance`, and all greater distances share the last.
    """
    half, exact = buckets // 2, buckets // 4
    starts = exact * (max_distance / exact) ** (
        np.arange(half - exact) / (half - exact)
    )  # of the growing buckets
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    distance = np.abs(offset)
    bucket = np.where(distance < exact, distance, exact - 1 + np.searchsorted(starts, distance, side="right"))
    return (bucket + half * (offset > 0)).astype(np.int32)


def _normal(shape: tuple[int, ...], std: float, rngs: nnx.Rngs) -> jax.Array:
    return std * draw(jax.random.normal, shape, rngs)


def _projection(in_features: int, out_features: int, std: float, *, rngs: nnx.Rngs) -> Linear:
    """A linear layer without bias whose weight is drawn as T5 was: normal, with the spread it is given."""
    layer = Linear(in_features, out_features, bias=False, rngs=rngs)
    layer.weight.set_value(_normal((out_features, in_features), std, rngs))
    return layer


class Embedding(nnx.Module):
    """A table of vectors, [entries, width]."""

    def __init__(self, entries: int, width: int, std: float, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(_normal((entries, width), std, rngs))

    def __call__(self, ids: Int[Array | np.ndarray, "*n"]) -> Float[Array, "*n d"]:
        """The rows that `ids` name."""
        return self.weight.get_value()[ids]


class T5Attention(nnx.Module):
    """Self-attention without biases or scaling; queries are drawn 1/sqrt(d_kv) smaller instead."""

    def __init__(self, cfg: Config, *, first: bool, rngs: nnx.Rngs):
        d, inner = cfg.d_model, cfg.num_heads * cfg.d_kv
        self.heads = cfg.num_heads
        self.q = _projection(d, inner, (d * cfg.d_kv) ** -0.5, rngs=rngs)
        self.k = _projection(d, inner, d**-0.5, rngs=rngs)
        self.v = _projection(d, inner, d**-0.5, rngs=rngs)
        self.o = _projection(inner, d, inner**-0.5, rngs=rngs)
        buckets = cfg.relative_attention_num_buckets
        self.relative_attention_bias = (
            Embedding(buckets, cfg.num_heads, d**-0.5, rngs=rngs) if first else None
        )

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 h n n"], mask: Bool[Array, "b 1 1 n"] | None
    ) -> Float[Array, "b n d"]:
        """What each token takes from the tokens that the mask leaves."""
        q, k, v = (split_heads(to(x), self.heads) for to in (self.q, self.k, self.v))
        return self.o(merge_heads(attention(q, k, v, mask=mask, bias=bias, scale=1.0)))


class GatedMlp(nnx.Module):
    """wo(gelu(wi_0 x) * wi_1 x), with the tanh GELU."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.wi_0 = _projection(cfg.d_model, cfg.d_ff, cfg.d_model**-0.5, rngs=rngs)
        self.wi_1 = _projection(cfg.d_model, cfg.d_ff, cfg.d_model**-0.5, rngs=rngs)
        self.wo = _projection(cfg.d_ff, cfg.d_model, cfg.d_ff**-0.5, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Each token by itself."""
        return self.wo(jax.nn.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))


class AttentionLayer(nnx.Module):
    """Norm, attention, skip."""

    def __init__(self, cfg: Config, *, first: bool, rngs: nnx.Rngs):
        self.SelfAttention = T5Attention(cfg, first=first, rngs=rngs)
        self.layer_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 h n n"], mask: Bool[Array, "b 1 1 n"] | None
    ) -> Float[Array, "b n d"]:
        """x plus its attention."""
        return x + self.SelfAttention(self.layer_norm(x), bias, mask)


class FeedForwardLayer(nnx.Module):
    """Norm, gated MLP, skip."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.DenseReluDense = GatedMlp(cfg, rngs=rngs)
        self.layer_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """x plus its MLP."""
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    """One transformer block: `layer.0` attends, `layer.1` is the MLP."""

    def __init__(self, cfg: Config, *, first: bool, rngs: nnx.Rngs):
        self.layer: nnx.List[Any] = nnx.List(
            [AttentionLayer(cfg, first=first, rngs=rngs), FeedForwardLayer(cfg, rngs=rngs)]
        )

    def __call__(
        self, x: Float[Array, "b n d"], bias: Float[Array, "1 h n n"], mask: Bool[Array, "b 1 1 n"] | None
    ) -> Float[Array, "b n d"]:
        """The next block's input."""
        attend, feed_forward = self.layer
        return feed_forward(attend(x, bias, mask))


class Encoder(nnx.Module):
    """The blocks and the last norm."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.buckets, self.max_distance = (
            cfg.relative_attention_num_buckets,
            cfg.relative_attention_max_distance,
        )
        self.block = nnx.List([Block(cfg, first=i == 0, rngs=rngs) for i in range(cfg.num_layers)])
        self.final_layer_norm = RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b 1 1 n"] | None
    ) -> Float[Array, "b n d"]:
        """Text features from token vectors."""
        bias_of = self.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = bias_of(distance_buckets(x.shape[1], self.buckets, self.max_distance)).astype(jnp.float32)
        bias = rearrange(bias, "n l h -> 1 h n l")
        for block in self.block:
            x = block(x, bias, mask)
        return self.final_layer_norm(x)


class T5(nnx.Module):
    """Token ids to text features."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.shared = Embedding(cfg.vocab_size, cfg.d_model, 1.0, rngs=rngs)
        self.encoder = Encoder(cfg, rngs=rngs)

    def __call__(
        self, ids: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        """Features of every token, padded ones included.

        mask: False keys take no part; where all are False, each takes an equal part. PixArt, Open-Sora and
        Latte pass one; FLUX, SD3 and CogVideoX pass None, so that padding is attended to.
        """
        return self.encoder(self.shared(ids), None if mask is None else mask[:, None, None, :])


def build(config: Config, *, rngs: nnx.Rngs) -> T5:
    """The encoder with freshly drawn weights."""
    return T5(config, rngs=rngs)
