"""What each quantized layer takes beside its float form, before anything runs: never slower unless said.

A layer's tokens and what is fused with it are read from a trace of one denoising step; times come from what
`viditq bench --tune` measured on this device, see `pallas_kernels.measured`. The prompt's keys and values,
which are computed once, are left out.
"""

import dataclasses
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels import measured, tuning
from viditq_jax.net import Net
from viditq_jax.nn.linear import NOTHING, After, Modulated, linear
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call, encode_prompt, guided_model
from viditq_jax.quant.prepare.hadamard import Rotation
from viditq_jax.quant.qweight import QWeight, quantized_part
from viditq_jax.quant.ranges import at_range
from viditq_jax.quant.size import weight_bytes
from viditq_jax.sampling.sample import draw_noise, sample_keys

LISTED = 5  # layers that a warning names


class SlowerWarning(UserWarning):
    """Layers that are slower quantized than in floats on this device."""


class Heard(NamedTuple):
    """How a layer is called. rows: tokens of the whole batch; form, epilogue: see pallas_kernels.layers."""

    rows: int
    form: str
    epilogue: str


@dataclasses.dataclass(frozen=True)
class LayerSpeed:
    """One quantized layer in a denoising step.

    k, n: inputs and outputs. seconds, float_seconds: of it and of its float form; None where no such shape
    was measured on this device, and for a layer without an integer product. implementation: the product's.
    """

    layer: str
    rows: int
    k: int
    n: int
    weight_bytes: int
    float_bytes: int
    implementation: str | None
    seconds: float | None
    float_seconds: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as in floats: more than 1 is faster."""
        if self.seconds is None or self.float_seconds is None:
            return None
        return self.float_seconds / self.seconds


def layer_speeds(pipeline: Pipeline, *, batch: int = 1) -> list[LayerSpeed]:
    """Each quantized layer of a step with so many samples, guidance doubling them; in the model's order."""
    weights, sizes = pipeline.denoiser.weights(), weight_bytes(pipeline.denoiser)
    heard = layer_calls(pipeline, batch=batch)
    dtype = "float32" if pipeline.denoiser.dtype == jnp.float32 else "bfloat16"
    found = []
    for path, call in heard.items():
        weight = quantized_part(weights[path])
        if weight is None:
            continue
        n, k = weight.shape
        times = _times(weight, call, dtype)
        bytes_of = sizes[path]
        found.append(LayerSpeed(path, call.rows, k, n, bytes_of.stored, bytes_of.dense, *times))
    return found


def slower(speeds: Iterable[LayerSpeed]) -> list[LayerSpeed]:
    """Those that are measured to be slower than in floats, the worst first."""
    known = [(each.ratio, each) for each in speeds if each.ratio is not None]
    return [each for ratio, each in sorted(known, key=lambda pair: pair[0]) if ratio < 1]


def warn_if_slower(pipeline: Pipeline, *, batch: int = 1) -> None:
    """Warn of every layer that costs time on this device; it keeps its compressed weights all the same.

    Silent where nothing was measured on this device.
    """
    if pipeline.recipe is None or not (measured.speeds("scaled_matmul") or measured.speeds("packed_matmul")):
        return
    if found := slower(layer_speeds(pipeline, batch=batch)):
        warnings.warn(slower_text(found, batch), SlowerWarning, stacklevel=3)


def slower_text(found: Sequence[LayerSpeed], batch: int) -> str:
    """What it costs to keep these layers quantized, and what to do about it."""
    named = ", ".join(f"{each.layer} ({each.ratio:.2f}x)" for each in found[:LISTED])
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    cost = sum((each.seconds or 0) - (each.float_seconds or 0) for each in found)
    saved = sum(each.float_bytes - each.weight_bytes for each in found)
    return (
        f"{len(found)} quantized layers are slower than in floats on {tuning.device_name()} at a batch of"
        f" {batch}: {named}{more}. They stay compressed, which saves {saved / 1e6:.1f} MB and costs"
        f' {1e3 * cost:.2f} ms a step; a recipe rule with "weight": null keeps a layer in floats.'
    )


def example_call(pipeline: Pipeline, *, batch: int, guided: bool, seed: int = 0) -> Call:
    """Noise, and random conditions as `Pipeline.encode` gives them, so that no text is encoded.

    Raises ValueError for a batch of none.
    """
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1.")
    keys = sample_keys(seed, 0, batch)
    noise = draw_noise(keys, pipeline.latent_shape())
    config, seen = pipeline.facts["denoiser"]["config"], batch * (1 + guided)
    kind = pipeline.facts["conditions"]["kind"]
    conditions: dict[str, Any] = {}
    if kind == "label":
        conditions = {"y": jnp.arange(seen) % int(config["classes"])}
    elif kind == "prompt":
        shape = (seen, int(config["text_length"]), int(config["caption_channels"]))
        text = jax.random.normal(jax.random.key(seed), shape, pipeline.denoiser.dtype)
        conditions = {"y": text, "mask": jnp.ones(shape[:2], bool), **pipeline.encoder.sizes(seen)}
    return Call(conditions, jnp.float32(pipeline.guidance.scale), noise, keys)


def layer_calls(pipeline: Pipeline, *, batch: int = 1) -> dict[str, Heard]:
    """How a denoising step calls each linear layer, from a trace; nothing is computed."""
    plan = pipeline.plan()
    heard: dict[str, Heard] = {}

    def step(net: Net) -> Array:
        net = at_range(net, 0)
        call = example_call(pipeline, batch=batch, guided=plan.guidance is not None)
        prompt = encode_prompt(net, call.conditions)
        net = net.map_weights(lambda path, weight: _Listening(weight, path, heard))
        t = jnp.zeros(batch, jnp.float32)
        return guided_model(net, call, plan.guidance, prompt)(call.start(), t, jnp.int32(0))

    jax.eval_shape(step, pipeline.denoiser)
    return heard


@dataclasses.dataclass(frozen=True)
class _Listening:
    """In a weight slot: computes what the weight does, and notes how it is called."""

    weight: Any
    path: str
    heard: dict[str, Heard]

    def linear(
        self, x: Float[Array, "... k"] | Modulated, bias: Array | None, after: After = NOTHING
    ) -> Float[Array, "... n"]:
        """What the weight computes."""
        epilogue = "gelu" if after.gelu else "none"
        if after.residual is not None:
            epilogue = "residual" if after.gate is None else "gate"
        form = "modulated" if isinstance(x, Modulated) else "plain"
        self.heard[self.path] = Heard(math.prod(x.shape[:-1]), form, epilogue)
        return linear(self.weight, x, bias, after)


def _times(weight: QWeight, call: Heard, dtype: str) -> tuple[str | None, float | None, float | None]:
    """The implementation of the product, the seconds of the layer, and those of its float form."""
    n, k = weight.shape
    if weight.act is None:
        return None, None, None
    rotated = any(isinstance(step, Rotation) for step in weight.prepare)
    form = "rotated" if rotated else call.form
    op = "packed_matmul" if weight.weight.spec.packed else "scaled_matmul"
    product = measured.speed(op, (call.rows, k, n), f"epilogue={call.epilogue}")
    rows = measured.speed("quantize_rows", (call.rows, k), f"form={form}")
    if product is None or rows is None:
        return None, None, None
    own, before = _quickest(product), _quickest(rows)
    if own is None or before is None:  # the code has changed since it was measured
        return None, None, None
    # In floats, only a modulation is a pass of its own over the input.
    float_pass = rows.seconds[dtype] if call.form == "modulated" else 0.0
    return own[0], own[1] + before[1], product.seconds[dtype] + float_pass


def _quickest(speed: measured.Speed) -> tuple[str, float] | None:
    own = [item for item in speed.seconds.items() if item[0] not in measured.FLOATS]
    return min(own, key=lambda item: item[1], default=None)
