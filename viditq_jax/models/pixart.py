"""PixArt-alpha and PixArt-Sigma: text-to-image diffusion transformers with one shared adaptive modulation.

One projection of the time embedding modulates all blocks; each block adds its own table to it. The keys and
values of the prompt do not depend on the image, so `encode_prompt` makes them once for all denoising steps.
Sources: PixArt-alpha, arXiv 2310.00426; PixArt-Sigma, arXiv 2403.04692.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from viditq_jax.nn.attention import attention, merge_heads, split_heads
from viditq_jax.nn.conv import Conv
from viditq_jax.nn.embed import Mlp, PatchEmbed, TimestepEmbedder, sincos_2d, unpatchify
from viditq_jax.nn.linear import NOTHING, After, Linear, Modulated
from viditq_jax.nn.norm import LayerNorm


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between PixArt models.

    input_size: side of the square latent that the model was trained for.
    pe_interpolation: position tables span the training grid divided by this factor.
    out_channels: twice in_channels where the variance is learned.
    micro_conditions: the size and aspect ratio of the image are inputs.
    kv_compress: blocks whose self-attention keys and values are reduced by kv_factor along each axis.
    with_null_caption: the weights hold a caption [text_length, caption_channels] that stands for no text.
    """

    input_size: int
    pe_interpolation: float = 1.0
    text_length: int = 300
    micro_conditions: bool = False
    kv_compress: tuple[int, ...] = ()
    kv_factor: int = 2
    depth: int = 28
    width: int = 1152
    heads: int = 16
    mlp_ratio: float = 4.0
    patch_size: int = 2
    in_channels: int = 4
    out_channels: int = 8
    caption_channels: int = 4096
    qk_norm: bool = False
    with_null_caption: bool = True

    @property
    def base_size(self) -> int:
        """Side of the training grid in patches."""
        return self.input_size // self.patch_size


_ALPHA = Config(input_size=32, text_length=120)
_SIGMA = Config(input_size=32, text_length=300)
_SIGMA_1024 = dataclasses.replace(_SIGMA, input_size=128, pe_interpolation=2.0)
_SIGMA_2K = dataclasses.replace(_SIGMA, input_size=256, pe_interpolation=4.0)
_COMPRESSED = tuple(range(14, 28))

CONFIGS = {
    "pixart-alpha-xl-2-256": _ALPHA,
    "pixart-alpha-xl-2-512": dataclasses.replace(_ALPHA, input_size=64),
    "pixart-alpha-xl-2-1024-ms": dataclasses.replace(
        _ALPHA, input_size=128, pe_interpolation=2.0, micro_conditions=True
    ),
    "pixart-sigma-xl-2-256": dataclasses.replace(_SIGMA, pe_interpolation=0.5),
    "pixart-sigma-xl-2-512-ms": dataclasses.replace(_SIGMA, input_size=64),
    "pixart-sigma-xl-2-1024-ms": _SIGMA_1024,
    "pixart-sigma-xl-2-2k-ms": _SIGMA_2K,
    "pixart-sigma-xl-2-1024-ms-kv": dataclasses.replace(_SIGMA_1024, kv_compress=_COMPRESSED),
    "pixart-sigma-xl-2-2k-ms-kv": dataclasses.replace(_SIGMA_2K, kv_compress=_COMPRESSED),
}
# What layers decide, for the search of bits; those that no pattern matches, how frames look.
GROUPS = {"text": ("*/cross_attn/*",)}


class Size(NamedTuple):
    """The micro-conditions, [b] each: pixels, and height / width, where PixArt gives the label of the bin."""

    height: jax.Array
    width: jax.Array
    aspect: jax.Array


class SelfAttention(nnx.Module):
    """Self-attention over the grid; compressed blocks merge neighbouring keys, and values, by a convolution.

    Source: PixArt-Sigma, section 3.2. The same convolution and norm serve keys and values.
    """

    def __init__(self, cfg: Config, *, compress: bool, rngs: nnx.Rngs):
        self.heads = cfg.heads
        self.qk_bits: int | None = None
        self.qkv = Linear(cfg.width, 3 * cfg.width, rngs=rngs)
        self.proj = Linear(cfg.width, cfg.width, rngs=rngs)
        self.q_norm = LayerNorm(cfg.width, eps=1e-5, rngs=rngs) if cfg.qk_norm else None
        self.k_norm = LayerNorm(cfg.width, eps=1e-5, rngs=rngs) if cfg.qk_norm else None
        self.sr = _mean_conv(cfg.width, cfg.kv_factor, rngs=rngs) if compress else None
        self.norm = LayerNorm(cfg.width, eps=1e-5, rngs=rngs) if compress else None

    def folds(self) -> dict[str, tuple[str, int]]:
        """Input channel j of `proj` mixes over tokens what row 2 d + j of `qkv` gives, unless normalized."""
        return {} if self.sr is not None else {"proj": ("qkv", 2 * self.proj.weight.get_value().shape[1])}

    def __call__(
        self, x: Float[Array, "b n d"] | Modulated, height: int, after: After = NOTHING
    ) -> Float[Array, "b n d"]:
        """Tokens x of a grid with `height` rows."""
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)  # over all channels, not head by head
        if self.sr is not None and self.norm is not None:
            grids = (rearrange(part, "b (h w) d -> b h w d", h=height) for part in (k, v))
            k, v = (self.norm(rearrange(self.sr(grid), "b h w d -> b (h w) d")) for grid in grids)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        return self.proj(merge_heads(attention(q, k, v, qk_bits=self.qk_bits)), after)


class Block(nnx.Module):
    """Modulated self-attention, attention to the prompt, modulated MLP. Source: PixArt-alpha, section 2.3."""

    def __init__(self, cfg: Config, *, compress: bool, rngs: nnx.Rngs):
        self.attn = SelfAttention(cfg, compress=compress, rngs=rngs)
        self.cross_attn = CrossAttention(cfg.width, cfg.heads, rngs=rngs)
        self.mlp = Mlp(cfg.width, int(cfg.mlp_ratio * cfg.width), rngs=rngs)
        self.scale_shift_table = table(6, cfg.width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        modulation: Float[Array, "b 6 d"],
        kv: tuple[jax.Array, jax.Array],
        mask: jax.Array | None,
        height: int,
    ) -> Float[Array, "b n d"]:
        """Tokens x of a grid with `height` rows, under the modulation and the prompt."""
        rows = six_rows(self.scale_shift_table, modulation, x.dtype)  # [b, 1, d] each
        shift1, scale1, gate1, shift2, scale2, gate2 = rows
        x = self.attn(Modulated(x, shift1, scale1), height, After(residual=x, gate=gate1))
        x = self.cross_attn(x, *kv, mask, After(residual=x))  # reads the residual itself: no norm, no gate
        x = self.mlp(Modulated(x, shift2, scale2), After(residual=x, gate=gate2))
        return x


class PixArt(nnx.Module):
    """The denoiser. Any latent size is accepted: positions are scaled to the training grid along each axis.

    Fresh weights: Xavier matrices, zero biases, tables normal / sqrt(width). The output projections
    of the model and of the attention to the prompt are zero: training begins with a model that predicts zero.
    """

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.x_embedder = PatchEmbed(cfg.patch_size, cfg.in_channels, cfg.width, rngs=rngs)
        self.t_embedder = TimestepEmbedder(cfg.width, rngs=rngs)
        self.t_block: nnx.List[Any] = nnx.List([nnx.silu, Linear(cfg.width, 6 * cfg.width, rngs=rngs)])
        self.csize_embedder = TimestepEmbedder(cfg.width // 3, rngs=rngs) if cfg.micro_conditions else None
        self.ar_embedder = TimestepEmbedder(cfg.width // 3, rngs=rngs) if cfg.micro_conditions else None
        null_length = cfg.text_length if cfg.with_null_caption else 0
        self.y_embedder = CaptionEmbedder(cfg.caption_channels, cfg.width, null_length=null_length, rngs=rngs)
        blocks = [Block(cfg, compress=i in cfg.kv_compress, rngs=rngs) for i in range(cfg.depth)]
        self.blocks = nnx.List(blocks)
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
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], prompt: Prompt, size: Size | None = None
    ) -> Float[Array, "b h w o"]:
        """Predicted noise, then the variance interpolation where it is learned.

        t: 0 to 999, may be fractional. size: needed by models with micro_conditions, and only by them.
        """
        cfg = self.cfg
        height, width = x.shape[1] // cfg.patch_size, x.shape[2] // cfg.patch_size
        steps = (cfg.base_size / side / cfg.pe_interpolation for side in (height, width))
        x = self.x_embedder(x) + jnp.asarray(sincos_2d(cfg.width, height, width, *steps), x.dtype)

        e = self.t_embedder(t, x.dtype)
        if (size is not None) != cfg.micro_conditions:
            need = "needs `size`" if cfg.micro_conditions else "takes no `size`"
            raise ValueError(f"a model with micro_conditions={cfg.micro_conditions} {need}.")
        if size is not None and self.csize_embedder is not None and self.ar_embedder is not None:
            parts = [self.csize_embedder(size.height, x.dtype), self.csize_embedder(size.width, x.dtype)]
            e = e + jnp.concatenate([*parts, self.ar_embedder(size.aspect, x.dtype)], axis=-1)
        silu, project = self.t_block
        modulation = rearrange(project(silu(e)), "b (six d) -> b six d", six=6)

        for block, kv in zip(self.blocks, prompt.kv, strict=True):
            x = block(x, modulation, kv, prompt.mask, height)
        return unpatchify(self.final_layer(x, e), height, cfg.patch_size)


def _mean_conv(channels: int, factor: int, *, rngs: nnx.Rngs) -> Conv:
    """A depthwise convolution that starts as the mean of factor x factor neighbours."""
    conv = Conv(channels, channels, factor, stride=factor, groups=channels, rngs=rngs)
    conv.kernel.set_value(jnp.full_like(conv.kernel.get_value(), factor**-2))
    return conv


def build(config: Config, *, rngs: nnx.Rngs) -> PixArt:
    """The model with freshly drawn weights."""
    return PixArt(config, rngs=rngs)
