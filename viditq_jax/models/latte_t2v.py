"""Latte-1: text-to-video, PixArt blocks within frames and plain ones across them in turn.

Only blocks within frames attend to the prompt. The first block across frames adds their positions to the
residual, where they stay. Sources: Latte, arXiv 2401.03048; https://huggingface.co/maxin-cn/Latte-1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from viditq_jax.nn.adaln_single import (
    CaptionEmbedder,
    CrossAttention,
    FinalLayer,
    Prompt,
    six_rows,
    table,
    tiled,
)
from viditq_jax.nn.embed import Mlp, PatchEmbed, TimestepEmbedder, sincos_1d, sincos_2d
from viditq_jax.nn.linear import After, Linear, Modulated
from viditq_jax.nn.video import Grid, SpaceTimeAttention, add_places, add_times, to_tokens, to_video


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between Latte's text-to-video models.

    depth: pairs of blocks. frames, input_size: of the latents that the model was trained for, sides of a
    square; other sizes run, with positions scaled to the training grid.
    out_channels: twice in_channels where the variance is learned.
    """

    frames: int = 16
    input_size: int = 64
    text_length: int = 120
    depth: int = 28
    width: int = 1152
    heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8
    caption_channels: int = 4096

    @property
    def pe_interpolation(self) -> float:
        """Position tables span the training grid divided by this factor."""
        return float(max(self.input_size // 64, 1))


CONFIGS = {"latte-1": Config()}
# What layers decide, for the search of bits; those that no pattern matches, how frames look.
GROUPS = {"text": ("*/cross_attn/*",), "temporal": ("*/temporal/attn/*",)}


class SpatialBlock(nnx.Module):
    """Modulated attention within frames, attention to the prompt, modulated MLP."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.attn = SpaceTimeAttention(cfg.width, cfg.heads, over="space", rngs=rngs)
        self.cross_attn = CrossAttention(cfg.width, cfg.heads, rngs=rngs)
        self.mlp = Mlp(cfg.width, int(cfg.mlp_ratio * cfg.width), rngs=rngs)
        self.scale_shift_table = table(6, cfg.width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        modulation: Float[Array, "b 6 d"],
        kv: tuple[jax.Array, jax.Array],
        mask: jax.Array | None,
        grid: Grid,
    ) -> Float[Array, "b n d"]:
        """Tokens x (t s) of a video, under the modulation and the prompt."""
        rows = six_rows(self.scale_shift_table, modulation, x.dtype)  # [b, 1, d] each
        shift1, scale1, gate1, shift2, scale2, gate2 = rows
        x = self.attn(Modulated(x, shift1, scale1), grid, After(residual=x, gate=gate1))
        x = self.cross_attn(x, *kv, mask, After(residual=x))  # reads the residual itself: no norm, no gate
        x = self.mlp(Modulated(x, shift2, scale2), After(residual=x, gate=gate2))
        return x


class TemporalBlock(nnx.Module):
    """Modulated attention across frames, modulated MLP."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.attn = SpaceTimeAttention(cfg.width, cfg.heads, over="time", rngs=rngs)
        self.mlp = Mlp(cfg.width, int(cfg.mlp_ratio * cfg.width), rngs=rngs)
        self.scale_shift_table = table(6, cfg.width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], modulation: Float[Array, "b 6 d"], grid: Grid
    ) -> Float[Array, "b n d"]:
        """Tokens x (t s) of a video, under the modulation."""
        rows = six_rows(self.scale_shift_table, modulation, x.dtype)  # [b, 1, d] each
        shift1, scale1, gate1, shift2, scale2, gate2 = rows
        x = self.attn(Modulated(x, shift1, scale1), grid, After(residual=x, gate=gate1))
        x = self.mlp(Modulated(x, shift2, scale2), After(residual=x, gate=gate2))
        return x


class Block(nnx.Module):
    """A block within frames and one across them. timed: it adds the positions of frames between the two.

    The checkpoint has two lists, transformer_blocks and temporal_transformer_blocks; here layers are in
    `blocks`, as recipes call them.
    """

    def __init__(self, cfg: Config, *, timed: bool, rngs: nnx.Rngs):
        self.timed = timed
        self.spatial = SpatialBlock(cfg, rngs=rngs)
        self.temporal = TemporalBlock(cfg, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        modulation: Float[Array, "b 6 d"],
        kv: tuple[jax.Array, jax.Array],
        mask: jax.Array | None,
        grid: Grid,
    ) -> Float[Array, "b n d"]:
        """Tokens x (t s) of a video, under the modulation and the prompt."""
        x = self.spatial(x, modulation, kv, mask, grid)
        if self.timed and grid.frames > 1:  # a picture has no time
            x = add_times(x, jnp.asarray(sincos_1d(x.shape[-1], np.arange(grid.frames)), x.dtype), grid)
        return self.temporal(x, modulation, grid)


class LatteT2V(nnx.Module):
    """The denoiser. Fresh weights: Xavier matrices, zero biases, tables normal / sqrt(width); the output
    projections of the model and of the attention to the prompt are zero.
    """

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.x_embedder = PatchEmbed(cfg.patch_size, cfg.in_channels, cfg.width, rngs=rngs)
        self.t_embedder = TimestepEmbedder(cfg.width, rngs=rngs)
        self.t_block: nnx.List[Any] = nnx.List([nnx.silu, Linear(cfg.width, 6 * cfg.width, rngs=rngs)])
        self.y_embedder = CaptionEmbedder(cfg.caption_channels, cfg.width, null_length=0, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, timed=i == 0, rngs=rngs) for i in range(cfg.depth)])
        self.final_layer = FinalLayer(cfg.width, cfg.patch_size**2 * cfg.out_channels, rngs=rngs)

    def encode_prompt(self, y: Float[Array, "b l c"], mask: Bool[Array, "m l"] | None = None) -> Prompt:
        """Text features to the keys and values of every block; done once for all steps, for all frames.

        mask: True for real tokens. With fewer rows than y it is tiled, [m0, m1, m0, m1].
        """
        mask, y = tiled(mask, y.shape[0]), self.y_embedder(y)
        return Prompt(tuple(block.spatial.cross_attn.encode(y) for block in self.blocks), mask)

    def __call__(
        self, x: Float[Array, "b t h w c"], t: Float[Array, " b"], prompt: Prompt
    ) -> Float[Array, "b t h w o"]:
        """Predicted noise, then the variance interpolation where it is learned. t: 0 to 999."""
        cfg = self.cfg
        x, grid = to_tokens(self.x_embedder, x)  # [b, t s, d]
        base = cfg.input_size // cfg.patch_size
        steps = (base / side / cfg.pe_interpolation for side in (grid.height, grid.width))
        places = sincos_2d(cfg.width, grid.height, grid.width, *steps)
        x = add_places(x, jnp.asarray(places, x.dtype)[None], grid)

        e = self.t_embedder(t, x.dtype)
        silu, project = self.t_block
        modulation = rearrange(project(silu(e)), "b (six d) -> b six d", six=6)

        for block, kv in zip(self.blocks, prompt.kv, strict=True):
            x = block(x, modulation, kv, prompt.mask, grid)
        return to_video(self.final_layer(x, e), grid, cfg.patch_size)


def build(config: Config, *, rngs: nnx.Rngs) -> LatteT2V:
    """The model with freshly drawn weights."""
    return LatteT2V(config, rngs=rngs)
