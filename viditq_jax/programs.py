"""The compiled programs of a pipeline: text to features, noise to latents, latents to pixels.

Latents are [b h w c] of pictures and [b t h w c] of videos, whose frames are decoded one by one.

What varies from call to call is an argument (weights, conditions, guidance scale, keys), so that it compiles
nothing; what shapes the program is static (sampler, steps, the kind of guidance).
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from viditq_jax.net import Net
from viditq_jax.quant.ranges import at_range, per_range, range_index, runs, weights_change
from viditq_jax.sampling.guidance import ORDERS, guided
from viditq_jax.sampling.ptqd import corrected
from viditq_jax.sampling.sample import Denoise, Rows, follow, rows
from viditq_jax.sampling.schedule import check_choice

FRAMES = 4  # of videos that are decoded together, at most
_GIVEN = "x_mask"  # of a call's conditions: False for frames that are given and stay as they are
# What models take after the prompt, of a call's conditions; each knows one of the first two.
_AFTER_PROMPT = ("size", "clip", _GIVEN)


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """What shapes a program over a whole trajectory; another plan compiles anew.

    guidance: how to guide, its scale left out (0); None where there is no guidance. bounds: of the denoising
    ranges.
    """

    sampler: Any
    steps: int
    guidance: Guidance | None
    bounds: tuple[int, ...] = ()

    def rows(self) -> Rows:
        """The sampler's table."""
        return rows(self.sampler, self.steps)

    def range_index(self) -> Int[np.ndarray, " steps"]:
        """The denoising range of each step."""
        return range_index(np.asarray(self.rows()["t"]), self.bounds)


class Call(NamedTuple):
    """What a program takes of one batch of conditions."""

    conditions: dict[str, Any]  # what `Pipeline.encode` gave
    scale: jax.Array  # [], of the guidance
    noise: jax.Array  # [b, h, w, c] or [b, t, h, w, c], initial
    keys: jax.Array  # [b], one a sample

    @property
    def batch(self) -> int:
        """The number of samples."""
        return int(self.noise.shape[0])

    def start(self) -> Float[Array, "b *t h w c"]:
        """The state before the first step."""
        return self.noise.astype(jnp.float32)


def encode_prompt(net: Net, conditions: dict[str, Any]) -> Any:
    """What depends on the prompt alone, such as its keys and values: computed once, before the loop."""
    if "mask" not in conditions:
        return None
    return net.call("encode_prompt", conditions["y"].astype(net.dtype), conditions["mask"])


def guided_model(net: Net, call: Call, guidance: Guidance | None, prompt: Any = None) -> Denoise:
    """denoise(x, t, i) for `sample`; no guidance where it is None.

    prompt: what `encode_prompt` gave; computed here where it is not given.
    """
    dtype, conditions = net.dtype, call.conditions
    if "mask" in conditions:
        prompt = encode_prompt(net, conditions) if prompt is None else prompt
        rest = [conditions[name] for name in _AFTER_PROMPT if name in conditions]

        def model(x: Array, t: Array, i: Array) -> Array:
            return net(x.astype(dtype), t, prompt, *rest)

    else:
        labels = [conditions["y"]] if "y" in conditions else []

        def model(x: Array, t: Array, i: Array) -> Array:
            return net(x.astype(dtype), t, *labels)

    denoise: Denoise = model
    if guidance is not None:
        denoise = guided(model, call.scale, channels=guidance.channels, order=guidance.order)
    return denoise if _GIVEN not in conditions else partial(_still, denoise, conditions[_GIVEN])


def _still(denoise: Denoise, made: Array, x: Array, t: Array, i: Array) -> Array:
    """The velocities of frames that are made; those that are given do not move."""
    return jnp.where(made[: len(x), :, None, None, None], denoise(x, t, i), 0)


def parts(net: Net, call: Call, plan: Plan) -> Iterator[tuple[Denoise, Rows]]:
    """The loops of a trajectory, one after the other: what denoises, and the rows of the sampler's table.

    One loop where nothing changes over the denoising ranges, or only small vectors do, which are chosen in
    each step; where whole weights change, one loop a run of steps in one range, so that no step copies them.
    """
    table = plan.rows()
    if not per_range(net.params):
        yield guided_model(net, call, plan.guidance), table
        return
    index = plan.range_index()
    if weights_change(net):
        for r, steps in runs(index):
            rows_here = {name: column[steps] for name, column in table.items()}
            yield guided_model(at_range(net, r), call, plan.guidance), rows_here
        return
    # Inputs that depend on the prompt alone were calibrated alike in every range.
    prompt, ranges = encode_prompt(at_range(net, 0), call.conditions), jnp.asarray(index)

    def denoise(x: Array, t: Array, i: Array) -> Array:
        return guided_model(at_range(net, ranges[i]), call, plan.guidance, prompt)(x, t, i)

    yield denoise, table


@partial(jax.jit, static_argnames="plan")
def denoise(
    net: Net, call: Call, correction: Float[Array, " steps"] | None = None, *, plan: Plan
) -> Float[Array, "b *t h w c"]:
    """The whole trajectory as one program. correction: of the noise of quantization, see `sampling.ptqd`."""
    return trajectory(net, call, correction, plan)[0]


@partial(jax.jit, static_argnames="plan")
def states(
    net: Net, call: Call, correction: Float[Array, " steps"] | None = None, *, plan: Plan
) -> Float[Array, "steps b *t h w c"]:
    """`denoise`, with the states after each of the steps as its result."""
    last, before = trajectory(net, call, correction, plan)
    return jnp.concatenate([before[1:], last[None]])


def trajectory(
    net: Net, call: Call, correction: Float[Array, " steps"] | None, plan: Plan
) -> tuple[Float[Array, "b *t h w c"], Float[Array, "steps b *t h w c"]]:
    """The last state, and the states before each step."""
    x, before = call.start(), []
    memory = plan.sampler.init(x)
    for model, table in parts(net, call, plan):
        model = model if correction is None else corrected(model, correction)
        look = partial(_note_state, model)
        x, memory, _, seen = follow(look, plan.sampler, x, memory, call.keys, table, None)
        before.append(seen)
    return x, jnp.concatenate(before)


def _note_state(model: Denoise, x: Array, t: Array, i: Array, _: None) -> tuple[Array, None, Array]:
    return model(x, t, i), None, x


@jax.jit
def encode_text(net: Net, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Text features [b, l, d] of token ids [b, l]."""
    return net(ids, mask)


@jax.jit
def decode(net: Net, latents: Float[Array, "b *t h w c"]) -> UInt8[Array, "b *t i j 3"]:
    """Latents to pixels, as one program."""
    return pixels(net, latents)


def pixels(net: Net, latents: Float[Array, "b *t h w c"]) -> UInt8[Array, "b *t i j 3"]:
    """Pixels 0 to 255, rounded to the nearest.

    Frames of videos are decoded a few at a time: the memory that it takes besides what goes in and comes out
    does not grow with their number.
    """
    if latents.ndim == 4:
        return _rounded(net, latents)
    b, t = latents.shape[:2]
    together = max(n for n in range(1, FRAMES + 1) if b * t % n == 0)
    slices = rearrange(latents.reshape(b * t, *latents.shape[2:]), "(s n) h w c -> s n h w c", n=together)
    found = jax.lax.map(partial(_rounded, net), slices)
    return found.reshape(b, t, *found.shape[2:])


def _rounded(net: Net, latents: Float[Array, "b h w c"]) -> UInt8[Array, "b i j 3"]:
    found = net.call("decode", latents.astype(net.dtype)).astype(jnp.float32)
    return jnp.round(jnp.clip(found / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
