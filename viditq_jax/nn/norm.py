"""Normalization, always computed in float32 and rounded once to the dtype of the input.

The variance is the mean of squared deviations, never E[x^2] - E[x]^2, which loses half of the digits.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float


def layer_norm(x: Float[Array, "... d"], eps: float = 1e-6) -> Float[Array, "... d"]:
    """LayerNorm over channels, without weight and bias."""
    x32 = x.astype(jnp.float32)
    centered = x32 - x32.mean(-1, keepdims=True)
    return (centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def modulate(
    x: Float[Array, "b n d"], shift: Float[Array, "b #n d"], scale: Float[Array, "b #n d"]
) -> Float[Array, "b n d"]:
    """x * (1 + scale) + shift, the adaptive part of adaLN."""
    return x * (1 + scale) + shift


class LayerNorm(nnx.Module):
    """LayerNorm over channels with weight and bias."""

    def __init__(self, width: int, *, eps: float, rngs: nnx.Rngs):
        del rngs  # constant initial values
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = layer_norm(x.astype(jnp.float32), self.eps)
        return (
            y * self.weight.get_value().astype(jnp.float32) + self.bias.get_value().astype(jnp.float32)
        ).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * weight: no mean subtraction, no bias."""

    def __init__(self, width: int, *, eps: float = 1e-6, rngs: nnx.Rngs):
        del rngs
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        x32 = x.astype(jnp.float32)
        y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (y * self.weight.get_value().astype(jnp.float32)).astype(x.dtype)


class GroupNorm(nnx.Module):
    """GroupNorm over the pixels and the channels of each group, with weight and bias."""

    def __init__(self, channels: int, groups: int, *, eps: float = 1e-6, rngs: nnx.Rngs):
        del rngs
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups; choose a divisor.")
        self.groups, self.eps = groups, eps
        self.weight = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x32 = x.astype(jnp.float32)
        centered = x32 - self._group_mean(x32)
        y = centered * jax.lax.rsqrt(self._group_mean(jnp.square(centered)) + self.eps)
        return (
            y * self.weight.get_value().astype(jnp.float32) + self.bias.get_value().astype(jnp.float32)
        ).astype(x.dtype)

    def _group_mean(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        """The mean of each group at its channels; pixels first, so that nothing is transposed (1.2x in
        training, CPU).
        """
        pixels = rearrange(x.mean((1, 2)), "b (g c) -> b g c", g=self.groups)
        means = jnp.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape)
        return rearrange(means, "b g c -> b 1 1 (g c)")
