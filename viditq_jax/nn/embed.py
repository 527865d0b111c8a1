"""Embeddings of time, position and patches. Position tables are made in float64 and rounded once."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from viditq_jax.nn.linear import NOTHING, After, Linear, Modulated


def timestep_embedding(
    t: Float[Array, "..."], dim: int = 256, *, freq_shift: float = 0.0, max_period: float = 10000.0
) -> Float[Array, "... dim"]:
    """[cos(t f_j), sin(t f_j)] with f_j = max_period^(-j / (dim/2 - freq_shift)), in float32.

    t: used as it is, 0 to 1000 or fractional. freq_shift: 0 in the original codes, 1 in diffusers' DiT.
    """
    half = dim // 2
    # The originals round the exponents to float32; those roundings are part of the trained models.
    exponents = (
        np.float32(-np.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    )
    freqs = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[..., None] * freqs
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    """[sin(p w_j), cos(p w_j)] with w_j = 10000^(-j / (dim/2)); float64 [len(positions), dim]."""
    freqs = 10000.0 ** (-np.arange(dim // 2, dtype=np.float64) / (dim / 2))
    angles = np.asarray(positions, np.float64).reshape(-1, 1) * freqs
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(
    dim: int, height: int, width: int, row_step: float = 1.0, column_step: float = 1.0
) -> np.ndarray:
    """Position table of a grid, tokens row by row; the first half of the channels is the column.

    row_step, column_step: distance of neighbours in position units. Returns float32 [height * width, dim].
    """
    rows = np.repeat(np.arange(height, dtype=np.float64) * row_step, width)
    columns = np.tile(np.arange(width, dtype=np.float64) * column_step, height)
    return np.concatenate([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], axis=1).astype(
        np.float32
    )


class TimestepEmbedder(nnx.Module):
    """Sinusoids of a scalar, then a two-layer SiLU network. Named after the original code: mlp.0 and
    mlp.2.
    """

    def __init__(self, width: int, *, frequencies: int = 256, freq_shift: float = 0.0, rngs: nnx.Rngs):
        self.frequencies, self.freq_shift = frequencies, freq_shift
        self.mlp: nnx.List[Any] = nnx.List(
            [Linear(frequencies, width, rngs=rngs), nnx.silu, Linear(width, width, rngs=rngs)]
        )

    def __call__(self, t: Float[Array, "..."], dtype: jnp.dtype) -> Float[Array, "... d"]:
        x = timestep_embedding(t, self.frequencies, freq_shift=self.freq_shift).astype(dtype)
        for layer in self.mlp:
            x = layer(x)
        return x


class PatchEmbed(nnx.Module):
    """Patches to tokens, row by row. `proj` is a strided convolution written as a linear layer on (c, p,
    q).
    """

    def __init__(self, patch_size: int, in_channels: int, width: int, *, rngs: nnx.Rngs):
        self.patch_size = patch_size
        self.proj = Linear(in_channels * patch_size**2, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        p = self.patch_size
        if x.shape[1] % p or x.shape[2] % p:
            raise ValueError(f"latent {x.shape[1]}x{x.shape[2]} is not a multiple of the patch size {p}.")
        return self.proj(rearrange(x, "b (h p) (w q) c -> b (h w) (c p q)", p=p, q=p))


def unpatchify(tokens: Float[Array, "b n e"], height: int, patch_size: int) -> Float[Array, "b h w c"]:
    """Tokens whose features are (p, q, c), channel fastest, to an image; `height` counts patches."""
    return rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", h=height, p=patch_size, q=patch_size)


class Mlp(nnx.Module):
    """Linear, tanh GELU, linear."""

    def __init__(self, width: int, hidden: int, out: int | None = None, *, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, out or width, rngs=rngs)

    def __call__(self, x: Float[Array, "... d"] | Modulated, after: After = NOTHING) -> Float[Array, "... e"]:
        return self.fc2(self.fc1(x, After(gelu=True)), after)
