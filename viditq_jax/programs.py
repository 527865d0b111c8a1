"""The compiled programs of a pipeline: text to features, noise to latents, latents to pixels.

What varies from call to call is an argument (weights, conditions, guidance scale, keys), so that it compiles
nothing; what shapes the program is static (sampler, steps, the kind of guidance).
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from viditq_jax.net import Net
from viditq_jax.quant.ranges import at_range, per_range, range_index, runs, weights_change
from viditq_jax.sampling.guidance import ORDERS, guided
from viditq_jax.sampling.ptqd import corrected
from viditq_jax.sampling.sample import Denoise, Rows, advance, rows
from viditq_jax.sampling.schedule import check_choice

Bounds = tuple[int, ...]


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


def encode_prompt(net: Net, conditions: dict[str, Any]) -> Any:
    """What depends on the prompt alone, such as its keys and values: computed once, before the loop."""
    if "mask" not in conditions:
        return None
    return net.call("encode_prompt", conditions["y"].astype(net.dtype), conditions["mask"])


def guided_model(
    net: Net, conditions: dict[str, Any], scale: Any, guidance: Guidance | None, prompt: Any = None
) -> Denoise:
    """denoise(x, t, i) for `sample`, from what `Pipeline.encode` gave; no guidance where it is None.

    prompt: what `encode_prompt` gave; computed here where it is not given.
    """
    dtype = net.dtype
    if "mask" in conditions:
        prompt = encode_prompt(net, conditions) if prompt is None else prompt

        def model(x: Array, t: Array, i: Array) -> Array:
            return net(x.astype(dtype), t, prompt, conditions.get("size"))

    else:

        def model(x: Array, t: Array, i: Array) -> Array:
            return net(x.astype(dtype), t, conditions["y"])

    if guidance is None:
        return model
    return guided(model, scale, channels=guidance.channels, order=guidance.order)


def parts(
    net: Net, conditions: dict[str, Any], scale: Any, guidance: Guidance | None, table: Rows, bounds: Bounds
) -> Iterator[tuple[Denoise, Rows]]:
    """The loops of a trajectory, one after the other: what denoises, and the rows of the sampler's table.

    One loop where nothing changes over the denoising ranges, or only small vectors do, which are chosen in
    each step; where whole weights change, one loop a run of steps in one range, so that no step copies them.
    """
    if not per_range(net.params):
        yield guided_model(net, conditions, scale, guidance), table
        return
    index = range_index(np.asarray(table["t"]), bounds)
    if weights_change(net):
        for r, steps in runs(index):
            rows_here = {name: column[steps] for name, column in table.items()}
            yield guided_model(at_range(net, r), conditions, scale, guidance), rows_here
        return
    # Inputs that depend on the prompt alone were calibrated alike in every range.
    prompt, ranges = encode_prompt(at_range(net, 0), conditions), jnp.asarray(index)

    def denoise(x: Array, t: Array, i: Array) -> Array:
        return guided_model(at_range(net, ranges[i]), conditions, scale, guidance, prompt)(x, t, i)

    yield denoise, table


@partial(jax.jit, static_argnames=("sampler", "steps", "guidance", "bounds"))
def denoise(
    net: Net,
    conditions: dict[str, Any],
    scale: Float[Array, ""],
    noise: Float[Array, "b h w c"],
    keys: Any,
    correction: Float[Array, " steps"] | None = None,
    *,
    sampler: Any,
    steps: int,
    guidance: Guidance | None,
    bounds: Bounds = (),
) -> Float[Array, "b h w c"]:
    """The whole trajectory as one program. `guidance` gives the facts; its scale comes as a traced number.

    correction: of the noise that quantization adds, see `sampling.ptqd`. bounds: of the denoising ranges.
    """
    x = noise.astype(jnp.float32)
    memory = sampler.init(x)
    for model, table in parts(net, conditions, scale, guidance, rows(sampler, steps), bounds):
        model = model if correction is None else corrected(model, correction)
        x, memory = advance(model, sampler, x, memory, keys, table)
    return x


@partial(jax.jit, static_argnames=("sampler", "steps", "guidance", "bounds"))
def states(
    net: Net,
    conditions: dict[str, Any],
    scale: Float[Array, ""],
    noise: Float[Array, "b h w c"],
    keys: Any,
    correction: Float[Array, " steps"] | None = None,
    *,
    sampler: Any,
    steps: int,
    guidance: Guidance | None,
    bounds: Bounds = (),
) -> Float[Array, "steps b h w c"]:
    """`denoise`, with the states after each of the steps as its result."""
    x = noise.astype(jnp.float32)
    memory: Any = (sampler.init(x), jnp.zeros((steps, *x.shape), jnp.float32))
    for model, table in parts(net, conditions, scale, guidance, rows(sampler, steps), bounds):
        model = model if correction is None else corrected(model, correction)
        x, memory = advance(model, _Keeping(sampler), x, memory, keys, table)
    return memory[1]


@dataclasses.dataclass(frozen=True)
class _Keeping:
    """A sampler that remembers the state after each step."""

    sampler: Any

    def table(self, steps: int) -> Any:
        return self.sampler.table(steps)

    def init(self, x: Array) -> Any:
        return self.sampler.init(x), None

    def step(
        self, x: Array, out: Array, row: Mapping[str, Array], memory: Any, keys: Array
    ) -> tuple[Array, Any]:
        inner, states = memory
        x, inner = self.sampler.step(x, out, row, inner, keys)
        return x, (inner, states.at[row["i"]].set(x))


@jax.jit
def encode_text(net: Net, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Text features [b, l, d] of token ids [b, l]."""
    return net(ids, mask)


@jax.jit
def decode(net: Net, latents: Float[Array, "b h w c"]) -> UInt8[Array, "b i j 3"]:
    """Pixels 0 to 255, rounded to the nearest."""
    pixels = net.call("decode", latents.astype(net.dtype)).astype(jnp.float32)
    return jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
