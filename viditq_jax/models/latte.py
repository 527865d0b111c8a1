"""Latte, of classes or unconditional: a DiT of videos that looks within frames and across them in turn.

Every block is one of DiT, modulated by time and label; the first that looks across frames adds their
positions to the residual, where they stay. Source: Latte, arXiv 2401.03048, variant 1.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from viditq_jax.models.dit import LabelEmbedder
from viditq_jax.nn.embed import Mlp, PatchEmbed, TimestepEmbedder, sincos_1d, sincos_2d
from viditq_jax.nn.linear import After, Linear, Modulated, zeroed
from viditq_jax.nn.video import Grid, SpaceTimeAttention, add_places, add_times, to_tokens, to_video


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between Latte models.

    classes: labels are 0 to classes - 1, and the label `classes` stands for none; 0 for a model without.
    frames, input_size: of the latents that the model was trained for, sides of a square; others run.
    out_channels: twice in_channels where the variance is learned.
    depth: blocks of both kinds, an even number.
    """

    classes: int = 0
    frames: int = 16
    input_size: int = 32
    depth: int = 28
    width: int = 1152
    heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8


CONFIGS = {
    "latte-xl-2-ucf101": Config(classes=101),
    "latte-xl-2-unconditional": Config(),  # FaceForensics, SkyTimelapse, Taichi-HD
}
# What layers decide, for the search of bits; those that no pattern matches, how frames look.
GROUPS = {"temporal": ("blocks/*[13579]/attn/*",)}  # every second block


def position_tables(cfg: Config) -> dict[str, np.ndarray]:
    """What is computed here and stored in checkpoints: positions in a frame, and of frames, [1, n, d]."""
    side = cfg.input_size // cfg.patch_size
    times = sincos_1d(cfg.width, np.arange(cfg.frames)).astype(np.float32)
    return {"pos_embed": sincos_2d(cfg.width, side, side)[None], "temp_embed": times[None]}


def _modulation(width: int, count: int, *, rngs: nnx.Rngs) -> "nnx.List[Any]":
    """SiLU and the projection to shifts, scales and gates; zero at first, so that every gate is closed."""
    return nnx.List([nnx.silu, zeroed(Linear(width, count * width, rngs=rngs))])


class Block(nnx.Module):
    """One adaLN-Zero transformer block, over space or time. timed: it adds the positions of frames first."""

    def __init__(self, cfg: Config, *, over: Literal["space", "time"], timed: bool, rngs: nnx.Rngs):
        self.timed = timed
        self.attn = SpaceTimeAttention(cfg.width, cfg.heads, over=over, rngs=rngs)
        self.mlp = Mlp(cfg.width, int(cfg.mlp_ratio * cfg.width), rngs=rngs)
        self.adaLN_modulation = _modulation(cfg.width, 6, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], c: Float[Array, "b d"], grid: Grid) -> Float[Array, "b n d"]:
        """Tokens x (t s) of a video under the condition c."""
        if self.timed:
            x = add_times(x, jnp.asarray(sincos_1d(x.shape[-1], np.arange(grid.frames)), x.dtype), grid)
        silu, project = self.adaLN_modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(project(silu(c))[:, None], 6, axis=-1)
        x = self.attn(Modulated(x, shift1, scale1), grid, After(residual=x, gate=gate1))
        x = self.mlp(Modulated(x, shift2, scale2), After(residual=x, gate=gate2))
        return x


class FinalLayer(nnx.Module):
    """Modulated norm and the projection to patches, zero at first."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.linear = zeroed(Linear(cfg.width, cfg.patch_size**2 * cfg.out_channels, rngs=rngs))
        self.adaLN_modulation = _modulation(cfg.width, 2, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], c: Float[Array, "b d"]) -> Float[Array, "b n o"]:
        """Tokens to flat patches."""
        silu, project = self.adaLN_modulation
        shift, scale = jnp.split(project(silu(c))[:, None], 2, axis=-1)
        return self.linear(Modulated(x, shift, scale))


class Latte(nnx.Module):
    """The denoiser. Fresh weights: Xavier matrices, normal labels, zero biases, modulations and output."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.x_embedder = PatchEmbed(cfg.patch_size, cfg.in_channels, cfg.width, rngs=rngs)
        self.t_embedder = TimestepEmbedder(cfg.width, rngs=rngs)
        self.y_embedder = LabelEmbedder(cfg.classes, cfg.width, rngs=rngs) if cfg.classes else None
        self.blocks = nnx.List(
            [Block(cfg, over="time" if i % 2 else "space", timed=i == 1, rngs=rngs) for i in range(cfg.depth)]
        )
        self.final_layer = FinalLayer(cfg, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b t h w c"], t: Float[Array, " b"], y: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t h w o"]:
        """Predicted noise, then the variance interpolation where it is learned.

        t: 0 to 999. y: label, 0 to classes - 1, or `classes` for none; of a model with classes, and only
        there.
        """
        cfg = self.cfg
        if (y is not None) != bool(cfg.classes):
            need = "needs labels `y`" if cfg.classes else "takes no labels `y`"
            raise ValueError(f"a model of {cfg.classes} classes {need}.")
        x, grid = to_tokens(self.x_embedder, x)  # [b, t s, d]
        x = add_places(x, jnp.asarray(sincos_2d(cfg.width, grid.height, grid.width), x.dtype)[None], grid)
        c = self.t_embedder(t, x.dtype)
        if y is not None and self.y_embedder is not None:
            c = c + self.y_embedder(y).astype(x.dtype)
        for block in self.blocks:
            x = block(x, c, grid)
        return to_video(self.final_layer(x, c), grid, cfg.patch_size)


def build(config: Config, *, rngs: nnx.Rngs) -> Latte:
    """The model with freshly drawn weights."""
    return Latte(config, rngs=rngs)
