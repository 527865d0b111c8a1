"""The image autoencoder of Stable Diffusion, which DiT, PixArt, STDiT and Latte share.

Latents are in the units of a denoiser: the model itself applies `scaling_factor` and `shift_factor`, and no
caller has to know them. Module names are those of the diffusers checkpoints.
Source: Latent Diffusion, arXiv 2112.10752, appendix G.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from viditq_jax.nn.attention import attention, merge_heads, split_heads
from viditq_jax.nn.conv import Conv
from viditq_jax.nn.linear import Linear
from viditq_jax.nn.norm import GroupNorm


@dataclasses.dataclass(frozen=True)
class Config:
    """What differs between autoencoders of this family; field names are those of diffusers.

    block_out_channels: width of each stage; every stage but the last halves height and width.
    layers_per_block: residual blocks of an encoder stage; a decoder stage has one more.
    scaling_factor, shift_factor: latent = (raw latent - shift) * scaling, of about unit spread.
    """

    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def downsampling(self) -> int:
        """Pixels along one side of a latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)


CONFIGS = {
    "sd-vae-ft": Config(),  # sd-vae-ft-ema and sd-vae-ft-mse: 83,653,863 parameters
    "sdxl-vae": Config(scaling_factor=0.13025),
}


class ResnetBlock(nnx.Module):
    """Norm, SiLU and convolution, twice, and a skip; `conv_shortcut` only where the width changes."""

    def __init__(self, in_channels: int, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = GroupNorm(in_channels, groups, rngs=rngs)
        self.conv1 = Conv(in_channels, channels, 3, padding=1, rngs=rngs)
        self.norm2 = GroupNorm(channels, groups, rngs=rngs)
        self.conv2 = Conv(channels, channels, 3, padding=1, rngs=rngs)
        self.conv_shortcut = Conv(in_channels, channels, 1, rngs=rngs) if in_channels != channels else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        """The image in `channels` channels."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AttentionBlock(nnx.Module):
    """Self-attention over all pixels with a single head as wide as the image, around a skip."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(channels, groups, rngs=rngs)
        self.to_q = Linear(channels, channels, rngs=rngs)
        self.to_k = Linear(channels, channels, rngs=rngs)
        self.to_v = Linear(channels, channels, rngs=rngs)
        self.to_out = nnx.List([Linear(channels, channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """x plus what each pixel takes from all others."""
        tokens = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])  # [b, n, c], row by row
        q, k, v = (split_heads(to(tokens), 1) for to in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out[0](merge_heads(attention(q, k, v))).reshape(x.shape)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        channels, groups = cfg.block_out_channels[-1], cfg.norm_num_groups
        self.resnets = nnx.List([ResnetBlock(channels, channels, groups, rngs=rngs) for _ in range(2)])
        self.attentions = nnx.List(
            [AttentionBlock(channels, groups, rngs=rngs)] if cfg.mid_block_add_attention else []
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """An image of the same shape."""
        x = self.resnets[0](x)
        for block in self.attentions:
            x = block(x)
        return self.resnets[1](x)


class Downsampler(nnx.Module):
    """Half the height and width; zeros are padded at the right and the bottom only."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, 3, stride=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        """Half the size."""
        return self.conv(x)


class Upsampler(nnx.Module):
    """Twice the height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv = Conv(channels, channels, 3, padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        """Twice the size."""
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


class DownBlock(nnx.Module):
    """An encoder stage; all but the last end with a downsampler."""

    def __init__(self, cfg: Config, in_channels: int, channels: int, *, last: bool, rngs: nnx.Rngs):
        widths = [in_channels] + [channels] * (cfg.layers_per_block - 1)
        self.resnets = nnx.List(
            [ResnetBlock(width, channels, cfg.norm_num_groups, rngs=rngs) for width in widths]
        )
        self.downsamplers = nnx.List([] if last else [Downsampler(channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j o"]:
        """The next stage's input."""
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class UpBlock(nnx.Module):
    """A decoder stage; all but the last end with an upsampler."""

    def __init__(self, cfg: Config, in_channels: int, channels: int, *, last: bool, rngs: nnx.Rngs):
        widths = [in_channels] + [channels] * cfg.layers_per_block
        self.resnets = nnx.List(
            [ResnetBlock(width, channels, cfg.norm_num_groups, rngs=rngs) for width in widths]
        )
        self.upsamplers = nnx.List([] if last else [Upsampler(channels, rngs=rngs)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j o"]:
        """The next stage's input."""
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


class Encoder(nnx.Module):
    """Pixels to the mean and the log-variance of raw latents, one after the other in the channels."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        widths = cfg.block_out_channels
        self.conv_in = Conv(3, widths[0], 3, padding=1, rngs=rngs)
        self.down_blocks = nnx.List(
            [
                DownBlock(cfg, before, width, last=i == len(widths) - 1, rngs=rngs)
                for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
            ]
        )
        self.mid_block = MidBlock(cfg, rngs=rngs)
        self.conv_norm_out = GroupNorm(widths[-1], cfg.norm_num_groups, rngs=rngs)
        self.conv_out = Conv(widths[-1], 2 * cfg.latent_channels, 3, padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b i j e"]:
        """Moments of an image."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Raw latents to pixels; its stages are the encoder's in reverse."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        widths = cfg.block_out_channels[::-1]
        self.conv_in = Conv(cfg.latent_channels, widths[0], 3, padding=1, rngs=rngs)
        self.mid_block = MidBlock(cfg, rngs=rngs)
        self.up_blocks = nnx.List(
            [
                UpBlock(cfg, before, width, last=i == len(widths) - 1, rngs=rngs)
                for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
            ]
        )
        self.conv_norm_out = GroupNorm(widths[-1], cfg.norm_num_groups, rngs=rngs)
        self.conv_out = Conv(widths[-1], 3, 3, padding=1, rngs=rngs)

    def __call__(self, z: Float[Array, "b i j c"]) -> Float[Array, "b h w 3"]:
        """An image of raw latents."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class AutoencoderKL(nnx.Module):
    """Pixels in [-1, 1] to the Gaussian of their latents, and latents to pixels."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs):
        self.cfg = cfg
        channels = cfg.latent_channels
        self.encoder = Encoder(cfg, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)
        self.quant_conv = Conv(2 * channels, 2 * channels, 1, rngs=rngs) if cfg.use_quant_conv else None
        self.post_quant_conv = Conv(channels, channels, 1, rngs=rngs) if cfg.use_post_quant_conv else None

    def encode(
        self, pixels: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b i j c"], Float[Array, "b i j c"]]:
        """Mean and standard deviation of the latents, in the denoiser's units.

        pixels: in [-1, 1], in the dtype of the weights.
        Raises ValueError if height or width is not a multiple of `downsampling`.
        """
        factor = self.cfg.downsampling
        if pixels.shape[1] % factor or pixels.shape[2] % factor:
            raise ValueError(
                f"image {pixels.shape[1]}x{pixels.shape[2]} is not a multiple of {factor}; crop or resize it."
            )
        moments = self.encoder(pixels)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        mean = (mean - self.cfg.shift_factor) * self.cfg.scaling_factor
        std = jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0)) * self.cfg.scaling_factor
        return mean.astype(pixels.dtype), std.astype(pixels.dtype)

    def decode(self, latents: Float[Array, "b i j c"]) -> Float[Array, "b h w 3"]:
        """Pixels, about in [-1, 1] and not clipped.

        latents: in the denoiser's units, in the dtype of the weights.
        """
        raw = latents.astype(jnp.float32) / self.cfg.scaling_factor + self.cfg.shift_factor
        z = raw.astype(latents.dtype)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))

    def __call__(
        self, pixels: Float[Array, "b h w 3"], key: jax.Array | None = None
    ) -> Float[Array, "b h w 3"]:
        """Encode, draw latents (their mean where no key is given), decode."""
        mean, std = self.encode(pixels)
        noise = 0.0 if key is None else std * jax.random.normal(key, mean.shape, mean.dtype)
        return self.decode(mean + noise)


def build(config: Config, *, rngs: nnx.Rngs) -> AutoencoderKL:
    """The autoencoder with freshly drawn weights."""
    return AutoencoderKL(config, rngs=rngs)
