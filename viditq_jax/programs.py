"""The compiled programs of a pipeline: text to features, noise to latents, latents to pixels.

What varies from call to call is an argument (weights, conditions, guidance scale, keys), so that it compiles
nothing; what shapes the program is static (sampler, steps, the kind of guidance).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from viditq_jax.net import Net
from viditq_jax.sampling.guidance import ORDERS, guided
from viditq_jax.sampling.sample import Denoise, sample
from viditq_jax.sampling.schedule import check_choice


@dataclasses.dataclass(frozen=True)
class Guidance:
    """How the conditional and the unconditional prediction meet.

    scale: weight of their difference; 1 means no guidance.
    channels: how many channels are guided; None is all.
    null: what stands for "no prompt": the text encoder's output for the empty prompt ("encoded"), or the
        table that the denoiser was trained with ("table").
    mask: which keys the unconditional half sees: its "own", or the "prompt"'s.
    order: which half of the doubled batch comes first.
    """

    scale: float = 4.5
    channels: int | None = None
    null: str = "encoded"
    mask: str = "own"
    order: str = "uncond_first"

    def __post_init__(self) -> None:
        check_choice("guidance null", self.null, ("encoded", "table"))
        check_choice("guidance mask", self.mask, ("own", "prompt"))
        check_choice("guidance order", self.order, ORDERS)


def _bind(net: Net, conditions: dict[str, Any]) -> Callable[..., jax.Array]:
    """model(x, t, i) with its conditions fixed; what depends on the prompt alone is computed here, once."""
    dtype = net.dtype
    if "mask" not in conditions:
        return lambda x, t, i: net(x.astype(dtype), t, conditions["y"])
    prompt = net.call("encode_prompt", conditions["y"].astype(dtype), conditions["mask"])
    return lambda x, t, i: net(x.astype(dtype), t, prompt, conditions.get("size"))


def guided_model(net: Net, conditions: dict[str, Any], scale: Any, guidance: Guidance | None) -> Denoise:
    """denoise(x, t, i) for `sample`, from what `Pipeline.encode` gave; no guidance where it is None."""
    model = _bind(net, conditions)
    return (
        model if guidance is None else guided(model, scale, channels=guidance.channels, order=guidance.order)
    )


@partial(jax.jit, static_argnames=("sampler", "steps", "guidance"))
def denoise(
    net: Net,
    conditions: dict[str, Any],
    scale: Float[Array, ""],
    noise: Float[Array, "b h w c"],
    keys: Any,
    *,
    sampler: Any,
    steps: int,
    guidance: Guidance | None,
) -> Float[Array, "b h w c"]:
    """The whole trajectory as one program. `guidance` gives the facts; its scale comes as a traced number."""
    return sample(guided_model(net, conditions, scale, guidance), sampler, noise, keys, steps=steps)


@jax.jit
def encode_text(net: Net, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Text features [b, l, d] of token ids [b, l]."""
    return net(ids, mask)


@jax.jit
def decode(net: Net, latents: Float[Array, "b h w c"]) -> UInt8[Array, "b i j 3"]:
    """Pixels 0 to 255, rounded to the nearest."""
    pixels = net.call("decode", latents.astype(net.dtype)).astype(jnp.float32)
    return jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
