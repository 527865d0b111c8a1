"""STDiT3 (Open-Sora 1.2): text-to-video of any size, length and frame rate, and with frames that are given.

Blocks come in pairs, one within frames and one across them, and each of the two is a whole PixArt block:
modulated attention, attention to the prompt, modulated MLP. Queries and keys are normed head by head; across
frames they are rotated. Source: https://github.com/hpcaitech/Open-Sora, version 1.2.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from viditq_jax.nn.adaln_single import CaptionEmbedder, CrossAttention, FinalLayer, Prompt, table, tiled
from viditq_jax.nn.embed import Mlp, PatchEmbed, TimestepEmbedder
from viditq_jax.nn.linear import After, Linear, Modulated, plain, zeroed
from viditq_jax.nn.video import Grid, SpaceTimeAttention, add_places, to_tokens, to_video


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between STDiT3 models.

    depth: pairs of blocks. frames: of the latents of 51 frames; others run.
    input_sq_size: side of the square, in pixels, whose positions are not scaled.
    out_channels: twice in_channels; training made no use of the second half.
    with_null_caption: the weights hold a caption [text_length, caption_channels] that stands for no text.
    """

    width: int = 1152
    heads: int = 16
    frames: int = 15
    input_sq_size: int = 512
    text_length: int = 300
    depth: int = 28
    mlp_ratio: float = 4.0
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8
    caption_channels: int = 4096
    with_null_caption: bool = True

    @property
    def input_size(self) -> int:
        """Side of the latent of that square; the autoencoder makes one pixel of 8x8."""
        return self.input_sq_size // 8


CONFIGS = {"stdit3-xl-2": Config(), "stdit3-3b-2": Config(width=1872, heads=26)}
# What layers decide, for the search of bits; those that no pattern matches, how frames look.
GROUPS = {"text": ("*/cross_attn/*",), "temporal": ("*/temporal/attn/*",)}


class Clip(NamedTuple):
    """What a video is made for, [b] each: frames a second, 120 for a picture; height and width in pixels."""

    fps: jax.Array
    height: jax.Array
    width: jax.Array


class HalfBlock(nnx.Module):
    """Modulated attention over space or time, attention to the prompt, modulated MLP."""

    def __init__(self, cfg: Config, *, over: Literal["space", "time"], rngs: nnx.Rngs):
        self.attn = SpaceTimeAttention(
            cfg.width, cfg.heads, over=over, qk_norm=True, rotary=over == "time", rngs=rngs
        )
        self.cross_attn = CrossAttention(cfg.width, cfg.heads, rngs=rngs)
        self.mlp = Mlp(cfg.width, int(cfg.mlp_ratio * cfg.width), rngs=rngs)
        self.scale_shift_table = table(6, cfg.width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        modulation: Float[Array, "b f 6 d"],
        kv: tuple[jax.Array, jax.Array],
        mask: jax.Array | None,
        grid: Grid,
    ) -> Float[Array, "b n d"]:
        """Tokens x (t s) of a video under the prompt, and under one modulation, or one of each frame."""
        whole, (_, f, _, d) = x.shape, modulation.shape
        rows = (self.scale_shift_table.get_value() + modulation).astype(x.dtype)
        rows = rearrange(rows, "b f six d -> six (b f) 1 d")
        shift1, scale1, gate1, shift2, scale2, gate2 = rows  # [b f, 1, d] each
        x = x.reshape(-1, whole[1] // f, d)  # [b f, n / f, d]: what is modulated alike
        x = self.attn(Modulated(x, shift1, scale1), grid, After(residual=x, gate=gate1)).reshape(whole)
        x = self.cross_attn(x, *kv, mask, After(residual=x)).reshape(-1, whole[1] // f, d)
        x = self.mlp(Modulated(x, shift2, scale2), After(residual=x, gate=gate2)).reshape(whole)
        return x


class Block(nnx.Module):
    """A half within frames and a half across them, which is nothing at first.

    The checkpoint has two lists, spatial_blocks and temporal_blocks; here layers are in `blocks`, as recipes
    call them.
    """

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.spatial = HalfBlock(cfg, over="space", rngs=rngs)
        self.temporal = HalfBlock(cfg, over="time", rngs=rngs)
        for layer in (self.temporal.attn.proj, self.temporal.mlp.fc2):
            zeroed(layer)

    def encode(self, y: Float[Array, "b l d"]) -> tuple[Any, Any]:
        """Keys and values of the prompt, of each half."""
        return self.spatial.cross_attn.encode(y), self.temporal.cross_attn.encode(y)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        modulation: Float[Array, "b f 6 d"],
        kv: tuple[Any, Any],
        mask: jax.Array | None,
        grid: Grid,
    ) -> Float[Array, "b n d"]:
        """Tokens x (t s) of a video, under one modulation, or one of each frame, and the prompt."""
        x = self.spatial(x, modulation, kv[0], mask, grid)
        x = self.temporal(x, modulation, kv[1], mask, grid)
        return x


class STDiT3(nnx.Module):
    """The denoiser, of velocities. Any latent size and number of frames are accepted.

    Fresh weights: Xavier matrices, zero biases, tables normal / sqrt(width). The output projections of the
    model, of the attention to the prompt and of the halves across frames are zero.
    """

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.x_embedder = PatchEmbed(cfg.patch_size, cfg.in_channels, cfg.width, rngs=rngs)
        self.t_embedder = TimestepEmbedder(cfg.width, rngs=rngs)
        self.fps_embedder = TimestepEmbedder(cfg.width, rngs=rngs)
        self.t_block: nnx.List[Any] = nnx.List([nnx.silu, Linear(cfg.width, 6 * cfg.width, rngs=rngs)])
        null_length = cfg.text_length if cfg.with_null_caption else 0
        self.y_embedder = CaptionEmbedder(cfg.caption_channels, cfg.width, null_length=null_length, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.depth)])
        self.final_layer = FinalLayer(cfg.width, cfg.patch_size**2 * cfg.out_channels, rngs=rngs)

    def null_caption(self) -> Float[Array, "l c"]:
        """The learned text features that stand for no text; raises ValueError where the weights hold none."""
        return self.y_embedder.null_caption()

    def encode_prompt(self, y: Float[Array, "b l c"], mask: Bool[Array, "m l"] | None = None) -> Prompt:
        """Text features to the keys and values of every block; done once for all steps.

        mask: True for real tokens. With fewer rows than y it is tiled, [m0, m1, m0, m1].
        """
        mask, y = tiled(mask, y.shape[0]), self.y_embedder(y)
        return Prompt(tuple(block.encode(y) for block in self.blocks), mask)

    def __call__(
        self,
        x: Float[Array, "b t h w c"],
        t: Float[Array, " b"],
        prompt: Prompt,
        clip: Clip,
        x_mask: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t h w o"]:
        """Predicted velocity, data minus noise, and as many channels that mean nothing.

        t: 0 to 1000, may be fractional. x_mask: False for frames that are given, which are at time 0.
        Where patches do not fill height and width, zeros do, on the right and below, as in training.
        """
        cfg, (height, width) = self.cfg, x.shape[2:4]
        fill = [(0, -side % cfg.patch_size) for side in (height, width)]
        x, grid = to_tokens(self.x_embedder, jnp.pad(x, [(0, 0), (0, 0), *fill, (0, 0)]))
        # Each video by its own size; the original scales all of a batch as its first one.
        scale = jnp.sqrt(clip.height * clip.width) / cfg.input_sq_size
        x = add_places(x, places(cfg.width, grid, scale), grid)

        fps = self.fps_embedder(clip.fps, x.dtype)
        e, e0 = (self.t_embedder(time, x.dtype) + fps for time in (t, jnp.zeros_like(t)))
        apart = e[:, None] if x_mask is None else jnp.where(x_mask[..., None], e[:, None], e0[:, None])
        silu, project = self.t_block
        modulation = rearrange(project(silu(apart)), "b f (six d) -> b f six d", six=6)

        for block, kv in zip(self.blocks, prompt.kv, strict=True):
            x = block(x, modulation, kv, prompt.mask, grid)
        out = self.final_layer(x, e) if x_mask is None else self._final(x, e, e0, x_mask)
        return to_video(out, grid, cfg.patch_size)[:, :, :height, :width]

    def _final(
        self,
        x: Float[Array, "b n d"],
        e: Float[Array, "b d"],
        e0: Float[Array, "b d"],
        x_mask: Bool[Array, "b t"],
    ) -> Float[Array, "b n o"]:
        """Given frames are normed and modulated twice, the second time as at time 0; as in training."""
        once = plain(Modulated(x, *self.final_layer.modulation(e, x.dtype)))
        twice = plain(Modulated(once, *self.final_layer.modulation(e0, x.dtype)))
        tokens = jnp.repeat(x_mask, x.shape[1] // x_mask.shape[1], axis=1)
        return self.final_layer.linear(jnp.where(tokens[..., None], once, twice))


def places(width: int, grid: Grid, scale: Float[Array, " b"]) -> Float[Array, "b s d"]:
    """`sincos_2d` of a grid as if it were a square of equally many patches, positions divided by `scale`."""
    side = round(math.sqrt(grid.tokens))
    freqs = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    rows = np.repeat(np.arange(grid.height) * side / grid.height, grid.width)[:, None] * freqs
    columns = np.tile(np.arange(grid.width) * side / grid.width, grid.height)[:, None] * freqs
    both = (jnp.asarray(angles, jnp.float32) / scale[:, None, None] for angles in (columns, rows))
    return jnp.concatenate([fn(angles) for angles in both for fn in (jnp.sin, jnp.cos)], axis=-1)


def build(config: Config, *, rngs: nnx.Rngs) -> STDiT3:
    """The model with freshly drawn weights."""
    return STDiT3(config, rngs=rngs)
