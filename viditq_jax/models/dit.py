"""DiT: the class-conditional diffusion transformer; every block is modulated by time and label.

Source: DiT, arXiv 2212.09748. The diffusers library computes another function of the same weights (other
timestep frequencies, other epsilon in one norm): `Config.diffusers` gives that flavour.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from viditq_jax.net import draw
from viditq_jax.nn.attention import SelfAttention
from viditq_jax.nn.embed import Mlp, PatchEmbed, TimestepEmbedder, sincos_2d, unpatchify
from viditq_jax.nn.linear import After, Linear, Modulated, zeroed


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between DiT models.

    input_size: side of the latent that the model was trained for; other sizes run, with positions never seen.
    out_channels: twice in_channels where the variance is learned.
    classes: labels are 0 to classes - 1; the label `classes` stands for none.
    freq_shift, mlp_norm_eps: 0 and 1e-6 in the original code, 1 and 1e-5 in diffusers.
    """

    width: int
    depth: int
    heads: int
    patch_size: int = 2
    input_size: int = 32
    mlp_ratio: float = 4.0
    in_channels: int = 4
    out_channels: int = 8
    classes: int = 1000
    freq_shift: float = 0.0
    mlp_norm_eps: float = 1e-6

    def diffusers(self) -> "Config":
        """The flavour that diffusers computes from the same weights."""
        return dataclasses.replace(self, freq_shift=1.0, mlp_norm_eps=1e-5)


_SIZES = {
    "s": Config(width=384, depth=12, heads=6),
    "b": Config(width=768, depth=12, heads=12),
    "l": Config(width=1024, depth=24, heads=16),
    "xl": Config(width=1152, depth=28, heads=16),
}
CONFIGS = {
    f"dit-{size}-{patch}-{pixels}": dataclasses.replace(config, patch_size=patch, input_size=pixels // 8)
    for size, config in _SIZES.items()
    for patch in (2, 4, 8)
    for pixels in (256, 512)
}
# What layers decide, for the search of bits; those that no pattern matches, how frames look.
GROUPS: dict[str, tuple[str, ...]] = {}


class Table(nnx.Module):
    """A matrix whose rows are looked up by number."""

    def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(0.02 * draw(jax.random.normal, (rows, width), rngs))

    def __call__(self, row: Int[Array, " b"]) -> Float[Array, "b d"]:
        """The rows asked for."""
        return self.weight.get_value()[row]


class LabelEmbedder(nnx.Module):
    """A vector for each label, and one more for no label."""

    def __init__(self, classes: int, width: int, *, rngs: nnx.Rngs):
        self.embedding_table = Table(classes + 1, width, rngs=rngs)

    def __call__(self, y: Int[Array, " b"]) -> Float[Array, "b d"]:
        """The vectors of the labels."""
        return self.embedding_table(y)


def _modulation(width: int, count: int, *, rngs: nnx.Rngs) -> "nnx.List[Any]":
    """SiLU and the projection to shifts, scales and gates; zero at first, so that every gate is closed."""
    return nnx.List([nnx.silu, zeroed(Linear(width, count * width, rngs=rngs))])


class Block(nnx.Module):
    """One adaLN-Zero transformer block. Source: DiT, section 3.2."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.mlp_norm_eps = cfg.mlp_norm_eps
        self.attn = SelfAttention(cfg.width, cfg.heads, rngs=rngs)
        self.mlp = Mlp(cfg.width, int(cfg.mlp_ratio * cfg.width), rngs=rngs)
        self.adaLN_modulation = _modulation(cfg.width, 6, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], c: Float[Array, "b d"]) -> Float[Array, "b n d"]:
        """Tokens x under the condition c."""
        silu, project = self.adaLN_modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(project(silu(c))[:, None], 6, axis=-1)
        x = self.attn(Modulated(x, shift1, scale1), After(residual=x, gate=gate1))
        x = self.mlp(Modulated(x, shift2, scale2, self.mlp_norm_eps), After(residual=x, gate=gate2))
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


class DiT(nnx.Module):
    """The denoiser. Fresh weights: Xavier matrices, normal labels, zero biases, modulations and output."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.x_embedder = PatchEmbed(cfg.patch_size, cfg.in_channels, cfg.width, rngs=rngs)
        self.t_embedder = TimestepEmbedder(cfg.width, freq_shift=cfg.freq_shift, rngs=rngs)
        self.y_embedder = LabelEmbedder(cfg.classes, cfg.width, rngs=rngs)
        self.blocks = nnx.List([Block(cfg, rngs=rngs) for _ in range(cfg.depth)])
        self.final_layer = FinalLayer(cfg, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], y: Int[Array, " b"]
    ) -> Float[Array, "b h w o"]:
        """Predicted noise, then the variance interpolation where it is learned.

        t: 0 to 999. y: label, 0 to classes - 1, or `classes` for none.
        """
        height, width = x.shape[1] // self.cfg.patch_size, x.shape[2] // self.cfg.patch_size
        x = self.x_embedder(x) + jnp.asarray(sincos_2d(self.cfg.width, height, width), x.dtype)
        c = self.t_embedder(t, x.dtype) + self.y_embedder(y).astype(x.dtype)
        for block in self.blocks:
            x = block(x, c)
        return unpatchify(self.final_layer(x, c), height, self.cfg.patch_size)


def build(config: Config, *, rngs: nnx.Rngs) -> DiT:
    """The model with freshly drawn weights."""
    return DiT(config, rngs=rngs)
