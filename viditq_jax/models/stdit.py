"""STDiT (Open-Sora 1.0): text-to-video, PixArt with attention across frames in every block.

Attention within each frame is modulated as in PixArt. Attention across frames reads the residual as it is,
without norm or modulation, and shares the gate; only the first block tells it which frame is which.
Source: https://github.com/hpcaitech/Open-Sora, version 1.0; the video model of ViDiT-Q, arXiv 2406.02540.
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
from viditq_jax.nn.linear import After, Linear, Modulated, zeroed
from viditq_jax.nn.video import Grid, SpaceTimeAttention, add_places, add_times, to_tokens, to_video


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between STDiT models.

    frames, input_size: of the latents that the model was trained for, sides of a square; others run.
    space_scale, time_scale: positions in a frame, and those of frames, are divided by these; nothing else
        scales them.
    out_channels: twice in_channels where the variance is learned.
    with_null_caption: the weights hold a caption [text_length, caption_channels] that stands for no text.
    """

    frames: int = 16
    input_size: int = 64
    space_scale: float = 1.0
    time_scale: float = 1.0
    text_length: int = 120
    depth: int = 28
    width: int = 1152
    heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8
    caption_channels: int = 4096
    with_null_caption: bool = True


CONFIGS = {
    "stdit-xl-2-16x256x256": Config(input_size=32, space_scale=0.5),
    "stdit-xl-2-16x512x512": Config(),
    "stdit-xl-2-64x512x512": Config(frames=64, time_scale=2 / 3),
}
# What layers decide, for the search of bits; those that no pattern matches, how frames look.
GROUPS = {"text": ("*/cross_attn/*",), "temporal": ("*/attn_temp/*",)}


class Block(nnx.Module):
    """Attention within frames, across frames and to the prompt, then the MLP.

    time_scale: given to the block that adds the positions of frames to what it attends to across them; they
    do not enter the residual.
    """

    def __init__(self, cfg: Config, *, time_scale: float | None, rngs: nnx.Rngs):
        self.time_scale = time_scale
        self.attn = SpaceTimeAttention(cfg.width, cfg.heads, over="space", rngs=rngs)
        self.attn_temp = SpaceTimeAttention(cfg.width, cfg.heads, over="time", rngs=rngs)
        zeroed(self.attn_temp.proj)
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
        x = self.attn_temp(self._timed(x, grid), grid, After(residual=x, gate=gate1))
        x = self.cross_attn(x, *kv, mask, After(residual=x))  # reads the residual itself: no norm, no gate
        x = self.mlp(Modulated(x, shift2, scale2), After(residual=x, gate=gate2))
        return x

    def _timed(self, x: Float[Array, "b n d"], grid: Grid) -> Float[Array, "b n d"]:
        if self.time_scale is None:
            return x
        times = sincos_1d(x.shape[-1], np.arange(grid.frames) / self.time_scale)
        return add_times(x, jnp.asarray(times, x.dtype), grid)


class STDiT(nnx.Module):
    """The denoiser. Any latent size and number of frames are accepted.

    Fresh weights: Xavier matrices, zero biases, tables normal / sqrt(width). The output projections of the
    model, of the attention to the prompt and of that across frames are zero: training begins with a model
    that predicts zero, and makes no use of time.
    """

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.x_embedder = PatchEmbed(cfg.patch_size, cfg.in_channels, cfg.width, rngs=rngs)
        self.t_embedder = TimestepEmbedder(cfg.width, rngs=rngs)
        self.t_block: nnx.List[Any] = nnx.List([nnx.silu, Linear(cfg.width, 6 * cfg.width, rngs=rngs)])
        null_length = cfg.text_length if cfg.with_null_caption else 0
        self.y_embedder = CaptionEmbedder(cfg.caption_channels, cfg.width, null_length=null_length, rngs=rngs)
        scales = [cfg.time_scale, *[None] * (cfg.depth - 1)]
        self.blocks = nnx.List([Block(cfg, time_scale=scale, rngs=rngs) for scale in scales])
        self.final_layer = FinalLayer(cfg.width, cfg.patch_size**2 * cfg.out_channels, rngs=rngs)

    def null_caption(self) -> Float[Array, "l c"]:
        """The learned text features that stand for no text; raises ValueError where the weights hold none."""
        return self.y_embedder.null_caption()

    def encode_prompt(self, y: Float[Array, "b l c"], mask: Bool[Array, "m l"] | None = None) -> Prompt:
        """Text features to the keys and values of every block; done once for all steps.

        mask: True for real tokens. With fewer rows than y it is tiled, [m0, m1, m0, m1].
        """
        mask, y = tiled(mask, y.shape[0]), self.y_embedder(y)
        return Prompt(tuple(block.cross_attn.encode(y) for block in self.blocks), mask)

    def __call__(
        self, x: Float[Array, "b t h w c"], t: Float[Array, " b"], prompt: Prompt
    ) -> Float[Array, "b t h w o"]:
        """Predicted noise, then the variance interpolation where it is learned. t: 0 to 999."""
        cfg = self.cfg
        x, grid = to_tokens(self.x_embedder, x)  # [b, t s, d]
        places = sincos_2d(cfg.width, grid.height, grid.width, 1 / cfg.space_scale, 1 / cfg.space_scale)
        x = add_places(x, jnp.asarray(places, x.dtype)[None], grid)

        e = self.t_embedder(t, x.dtype)
        silu, project = self.t_block
        modulation = rearrange(project(silu(e)), "b (six d) -> b six d", six=6)

        for block, kv in zip(self.blocks, prompt.kv, strict=True):
            x = block(x, modulation, kv, prompt.mask, grid)
        return to_video(self.final_layer(x, e), grid, cfg.patch_size)


def build(config: Config, *, rngs: nnx.Rngs) -> STDiT:
    """The model with freshly drawn weights."""
    return STDiT(config, rngs=rngs)
