"""Classifier-free guidance as a wrapper of denoise."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from viditq_jax.sampling.sample import Denoise
from viditq_jax.sampling.schedule import check_choice

ORDERS = ("cond_first", "uncond_first")


def guided(
    model: Callable[[Array, Array, Array], Array],
    scale: float | Float[Array, ""],
    *,
    channels: int | None = None,
    order: str = "cond_first",
) -> Denoise:
    """A denoise that calls `model` once on a doubled batch and gives u + scale (c - u), in float32.

    model: (x, t, i) -> prediction; it already knows the conditions of the doubled batch, in the given
    `order`: conditional then unconditional samples ("cond_first"), or the reverse. The scan traces one call,
    so quantizers that share a scale over a batch see both halves together.
    scale: 1 is no guidance. It may be traced: then a new scale compiles nothing.
    channels: how many leading channels are guided; None is all of the prediction. The original ancestral
    loops of DiT, PixArt and Open-Sora guide 3 of 4. All other channels, the variance among them, come from
    the conditional half.
    Raises ValueError for an unknown order and, when called, for channels outside 1..c or a model that does
    not give the doubled batch.
    """
    check_choice("order", order, ORDERS)

    def denoise(
        x: Float[Array, "b *shape"], t: Float[Array, " b"], i: Int[Array, ""]
    ) -> Float[Array, "b *out"]:
        n = x.shape[-1] if channels is None else channels
        if not 1 <= n <= x.shape[-1]:
            raise ValueError(f"asked to guide {n} channels of a state with {x.shape[-1]}.")
        out = model(jnp.concatenate([x, x]), jnp.concatenate([t, t]), i)
        if out.shape[0] != 2 * x.shape[0]:
            raise ValueError(
                f"the model gave {out.shape[0]} samples for a doubled batch of {2 * x.shape[0]}."
            )
        cond, uncond = jnp.split(out.astype(jnp.float32), 2)
        if order == "uncond_first":
            cond, uncond = uncond, cond
        mixed = uncond[..., :n] + scale * (cond[..., :n] - uncond[..., :n])
        return jnp.concatenate([mixed, cond[..., n:]], axis=-1)

    return denoise
