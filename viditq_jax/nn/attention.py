"""Self-attention, and what other attention modules share: the op `attention`, and heads.

A module with a field `qk_bits` may have its queries and keys in 8 bits; see `quant/attention.py`.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from pallas_kernels.attention import attention
from viditq_jax.nn.linear import NOTHING, After, Linear, Modulated


def split_heads(x: Float[Array, "b n hd"], heads: int) -> Float[Array, "b n h d"]:
    """Cut the channels into heads, head by head (head-major)."""
    return rearrange(x, "b n (h d) -> b n h d", h=heads)


def merge_heads(x: Float[Array, "b n h d"]) -> Float[Array, "b n hd"]:
    """The inverse of split_heads."""
    return rearrange(x, "b n h d -> b n (h d)")


class SelfAttention(nnx.Module):
    """Self-attention with one fused projection for queries, keys and values (in this order), all with
    biases.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads; choose a divisor.")
        self.heads = heads
        self.qk_bits: int | None = None
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)

    def folds(self) -> dict[str, tuple[str, int]]:
        """Which layer's input channels are, each, mixed over tokens from one output row of another layer.

        Channel j of the input of `proj` is a mix of what row 2 d + j of `qkv` gives: whatever scales the row
        scales the channel.
        """
        return {"proj": ("qkv", 2 * self.proj.weight.get_value().shape[1])}

    def __call__(self, x: Float[Array, "b n d"] | Modulated, after: After = NOTHING) -> Float[Array, "b n d"]:
        q, k, v = (split_heads(part, self.heads) for part in jnp.split(self.qkv(x), 3, axis=-1))
        return self.proj(merge_heads(attention(q, k, v, qk_bits=self.qk_bits)), after)
