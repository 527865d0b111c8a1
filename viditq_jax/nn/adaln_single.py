"""What PixArt and its video descendants share: adaLN-single's tables, and attention to a prompt.

The keys and values of a prompt do not depend on the picture, so `CrossAttention.encode` makes them once for
all denoising steps. Source: PixArt-alpha, arXiv 2310.00426, section 2.3.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from viditq_jax.net import draw
from viditq_jax.nn.attention import attention, merge_heads, split_heads
from viditq_jax.nn.embed import Mlp
from viditq_jax.nn.linear import NOTHING, After, Linear, Modulated, zeroed


class Prompt(NamedTuple):
    """An encoded prompt: keys and values of each block, [b, l, h, d] each, and the real tokens, [b, l]."""

    kv: tuple[Any, ...]
    mask: jax.Array | None


class CrossAttention(nnx.Module):
    """Attention to the prompt, whose keys and values are made apart by `encode`."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.q_linear = Linear(width, width, rngs=rngs)
        self.kv_linear = Linear(width, 2 * width, rngs=rngs)
        self.proj = zeroed(Linear(width, width, rngs=rngs))

    def folds(self) -> dict[str, tuple[str, int]]:
        """Input channel j of `proj` mixes over tokens what row d + j of `kv_linear` gives."""
        return {"proj": ("kv_linear", self.proj.weight.get_value().shape[1])}

    def encode(self, y: Float[Array, "b l d"]) -> tuple[Float[Array, "b l h e"], Float[Array, "b l h e"]]:
        """Keys and values of the prompt."""
        k, v = jnp.split(self.kv_linear(y), 2, axis=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        k: Float[Array, "b l h e"],
        v: Float[Array, "b l h e"],
        mask: jax.Array | None,
        after: After = NOTHING,
    ) -> Float[Array, "b n d"]:
        """What each token takes from the prompt."""
        q = split_heads(self.q_linear(x), self.heads)
        keys = None if mask is None else mask[:, None, None, :]
        return self.proj(merge_heads(attention(q, k, v, mask=keys)), after)


class CaptionEmbedder(nnx.Module):
    """Projects text features to the width of the model; may hold the caption that stands for no text.

    null_length: tokens of that caption; 0 for none.
    """

    def __init__(self, channels: int, width: int, *, null_length: int, rngs: nnx.Rngs):
        self.y_proj = Mlp(channels, width, width, rngs=rngs)
        self.y_embedding = table(null_length, channels, rngs=rngs) if null_length else None

    def null_caption(self) -> Float[Array, "l c"]:
        """The learned text features that stand for no text; raises ValueError where the weights hold none."""
        if self.y_embedding is None:
            raise ValueError("these weights hold no null caption; encode an empty prompt instead.")
        return self.y_embedding.get_value()

    def __call__(self, y: Float[Array, "b l c"]) -> Float[Array, "b l d"]:
        """Text features in the width of the model."""
        return self.y_proj(y)


class FinalLayer(nnx.Module):
    """Modulated norm and projection to patches; the time embedding is added to both rows of the table."""

    def __init__(self, width: int, features: int, *, rngs: nnx.Rngs):
        self.linear = zeroed(Linear(width, features, rngs=rngs))
        self.scale_shift_table = table(2, width, rngs=rngs)

    def modulation(
        self, e: Float[Array, "b d"], dtype: jnp.dtype
    ) -> tuple[Float[Array, "b 1 d"], Float[Array, "b 1 d"]]:
        """Shift and scale under the time embedding e."""
        shift, scale = jnp.split((self.scale_shift_table.get_value() + e[:, None]).astype(dtype), 2, axis=1)
        return shift, scale

    def __call__(self, x: Float[Array, "b n d"], e: Float[Array, "b d"]) -> Float[Array, "b n o"]:
        """Tokens to flat patches; e is the time embedding."""
        return self.linear(Modulated(x, *self.modulation(e, x.dtype)))


def table(rows: int, width: int, *, rngs: nnx.Rngs) -> nnx.Param:
    """A learned table, normal / sqrt(width) at first."""
    return nnx.Param(draw(jax.random.normal, (rows, width), rngs) / width**0.5)


def six_rows(
    rows: nnx.Param, modulation: Float[Array, "b 6 d"], dtype: jnp.dtype
) -> tuple[Float[Array, "b 1 d"], ...]:
    """Shift, scale and gate of attention, then of the feed-forward, from a block's table."""
    return tuple(jnp.split((rows.get_value() + modulation).astype(dtype), 6, axis=1))


def tiled(mask: Bool[Array, "m l"] | None, rows: int) -> Bool[Array, "b l"] | None:
    """The mask for `rows` captions: [m0, m1, m0, m1] where it has fewer.

    Under guidance the half without text then uses the mask of the prompt, as the original codes do.
    Raises ValueError where the captions do not share the rows evenly.
    """
    if mask is None:
        return None
    if rows % mask.shape[0]:
        raise ValueError(f"{rows} captions do not share {len(mask)} mask rows evenly; pass a row each.")
    return jnp.tile(mask, (rows // mask.shape[0], 1))
