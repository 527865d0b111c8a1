"""PTQD's correction of correlated quantization noise, as a wrapper of denoise. Source: arXiv 2305.10657, 3.2.

A quantized model gives out + error. The part of the error that follows the prediction, k * out, is removed by
division; what is left is uncorrelated with it. (The released ViDiT-Q code divides for every method; here a
recipe asks for it.) The corrections of bias and variance that the paper also has are not here: the release
does not use them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from viditq_jax.sampling.sample import Denoise


def corrected(denoise: Denoise, k: Float[Array, " steps"]) -> Denoise:
    """The denoiser with its prediction divided by 1 + k[i] in step i; a learned variance stays as it is."""

    def divided(
        x: Float[Array, "b *shape"], t: Float[Array, " b"], i: Int[Array, ""]
    ) -> Float[Array, "b *out"]:
        out = denoise(x, t, i).astype(jnp.float32)
        c = x.shape[-1]
        return jnp.concatenate([out[..., :c] / (1 + k[i]), out[..., c:]], axis=-1)

    return divided


def correlation(
    out: Float[Array, "b *out"], reference: Float[Array, "b *out"], channels: int
) -> Float[Array, " 2"]:
    """<out - reference, reference> and <reference, reference> over the predicted channels.

    Sums of these over samples, one divided by the other, are k: the least-squares fit of the error by the
    prediction.
    """
    ours, theirs = (each[..., :channels].astype(jnp.float32) for each in (out, reference))
    return jnp.stack([jnp.sum((ours - theirs) * theirs), jnp.sum(theirs * theirs)])
