"""Videos as tokens: patches of frames, and attention within frames or across them.

Tokens are ordered (t s): frame by frame, and row by row in a frame. The linear layers see this order always;
only queries, keys and values are regrouped, so residuals and gates need no transposes.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from viditq_jax.nn.attention import attention
from viditq_jax.nn.embed import PatchEmbed, unpatchify
from viditq_jax.nn.linear import NOTHING, After, Linear, Modulated
from viditq_jax.nn.norm import RMSNorm


@dataclasses.dataclass(frozen=True)
class Grid:
    """How many frames a video has, and how many rows and columns of patches a frame has."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Patches of one frame."""
        return self.height * self.width


class SpaceTimeAttention(nnx.Module):
    """Self-attention within each frame ("space"), or of each place across the frames ("time").

    qk_norm: queries and keys are divided by their root mean square, head by head. rotary: they are then
    rotated by the angles of `rotate`; only across frames.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        over: Literal["space", "time"],
        qk_norm: bool = False,
        rotary: bool = False,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads; choose a divisor.")
        self.heads, self.over, self.rotary = heads, over, rotary
        if over == "space":
            self.qk_bits: int | None = None  # across frames there are too few keys for 8 bits to pay
        self.qkv = Linear(width, 3 * width, rngs=rngs)
        self.proj = Linear(width, width, rngs=rngs)
        self.q_norm = RMSNorm(width // heads, rngs=rngs) if qk_norm else None
        self.k_norm = RMSNorm(width // heads, rngs=rngs) if qk_norm else None

    def folds(self) -> dict[str, tuple[str, int]]:
        """Input channel j of `proj` mixes over tokens what row 2 d + j of `qkv` gives."""
        return {"proj": ("qkv", 2 * self.proj.weight.get_value().shape[1])}

    def __call__(
        self, x: Float[Array, "b n d"] | Modulated, grid: Grid, after: After = NOTHING
    ) -> Float[Array, "b n d"]:
        """Tokens x (t s) of videos; b may also count their frames, where each is modulated by itself."""
        apart = "(b t) s h d" if self.over == "space" else "(b s) t h d"
        qkv = self.qkv(x)
        rows = qkv.reshape(-1, grid.frames * grid.tokens, qkv.shape[-1])
        q, k, v = (
            rearrange(part, f"b (t s) (h d) -> {apart}", t=grid.frames, h=self.heads)
            for part in jnp.split(rows, 3, axis=-1)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotate(q), rotate(k)
        y = attention(q, k, v, qk_bits=self.qk_bits if self.over == "space" else None)
        y = rearrange(y, f"{apart} -> b (t s) (h d)", t=grid.frames, s=grid.tokens)
        return self.proj(y.reshape(x.shape), after)


def rotate(x: Float[Array, "b t h d"]) -> Float[Array, "b t h d"]:
    """Rotary positions: channels 2 j and 2 j + 1 of frame t turn by t 10000^(-2 j / d); in float32.

    Source: RoFormer, arXiv 2104.09864, equation 34.
    """
    frames, half = x.shape[1], x.shape[3] // 2
    angles = np.arange(frames)[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = (np.asarray(fn(angles), np.float32)[:, None] for fn in (np.cos, np.sin))  # [t, 1, d / 2]
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def add_places(x: Float[Array, "b n d"], table: Float[Array, "#b s d"], grid: Grid) -> Float[Array, "b n d"]:
    """Tokens x (t s), plus a row of `table` for each place in a frame."""
    return _add(x, table[:, None], grid)


def add_times(x: Float[Array, "b n d"], table: Float[Array, "t d"], grid: Grid) -> Float[Array, "b n d"]:
    """Tokens x (t s), plus a row of `table` for each frame."""
    return _add(x, table[None, :, None], grid)


def _add(x: Float[Array, "b n d"], table: Float[Array, "#b #t #s d"], grid: Grid) -> Float[Array, "b n d"]:
    return (rearrange(x, "b (t s) d -> b t s d", t=grid.frames) + table.astype(x.dtype)).reshape(x.shape)


def to_tokens(embed: PatchEmbed, x: Float[Array, "b t h w c"]) -> tuple[Float[Array, "b n d"], Grid]:
    """Patches of each frame to tokens (t s), and their grid."""
    frames, p = x.shape[1], embed.patch_size
    tokens = embed(rearrange(x, "b t h w c -> (b t) h w c"))
    grid = Grid(frames, x.shape[2] // p, x.shape[3] // p)
    return rearrange(tokens, "(b t) s d -> b (t s) d", t=frames), grid


def to_video(tokens: Float[Array, "b n e"], grid: Grid, patch_size: int) -> Float[Array, "b t h w c"]:
    """Tokens (t s) whose features are (p, q, c), channel fastest, to a video."""
    frames = rearrange(tokens, "b (t s) e -> (b t) s e", t=grid.frames)
    return rearrange(unpatchify(frames, grid.height, patch_size), "(b t) h w c -> b t h w c", t=grid.frames)
