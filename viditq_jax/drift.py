"""How quantization noise grows: from layer to layer, and from step to step.

    drift          distance of the latents of two pipelines after every step, both started from the same noise
    layer_noise    signal to quantization noise of each layer, on the inputs that the float model gives it

The first tells what a picture suffers; the second which layer to blame, as there no layer inherits the errors
of those before it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from viditq_jax.net import Net
from viditq_jax.nn.linear import NOTHING, After, Modulated, linear, plain
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call, Plan, encode_prompt, guided_model, states
from viditq_jax.quant.fold import fold, folded
from viditq_jax.quant.qweight import quantized_part
from viditq_jax.quant.ranges import at_range
from viditq_jax.quant.stats import Stats
from viditq_jax.sampling.sample import follow

_DIGITS = 6  # significant digits in records


@dataclasses.dataclass(frozen=True)
class Drift:
    """Distance of two trajectories after each step: means over the samples."""

    t: tuple[float, ...]  # the time that the model was given
    relative_l2: tuple[float, ...]  # |x - reference| / |reference|
    cosine: tuple[float, ...]

    @classmethod
    def between(
        cls, t: Sequence[float], reference: Float[np.ndarray, "steps b ..."], states: np.ndarray
    ) -> "Drift":
        """Of states after each step, as `trajectory` gives them."""
        a, b = (each.reshape(*each.shape[:2], -1).astype(np.float64) for each in (reference, states))
        size_a, size_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
        distance = (np.linalg.norm(b - a, axis=-1) / size_a).mean(1)
        cosine = ((a * b).sum(-1) / (size_a * size_b)).mean(1)
        return cls(*(tuple(np.asarray(each, float).tolist()) for each in (t, distance, cosine)))

    @property
    def final(self) -> float:
        """Relative L2 distance of the finished latents."""
        return self.relative_l2[-1]

    def to_json(self) -> dict[str, list[float]]:
        """The record of a run; cosines keep all digits, as they differ from 1 by little."""
        return {
            "t": list(self.t),
            "relative_l2": [_short(value) for value in self.relative_l2],
            "cosine": list(self.cosine),
        }


@dataclasses.dataclass(frozen=True)
class LayerNoise:
    """The noise of one quantized layer, in decibels below its float output, and how uneven its input is.

    incoherence: largest |x| over mean |x| of the input, before what the layer does to it (a folded balance is
    in it already) and, prepared, after it was balanced and rotated; of each step the whole batch. The noise
    is of weight, input and low-rank branch together, without rounding to bfloat16.
    """

    sqnr_db: float  # over all steps; infinite without noise
    sqnr_db_steps: tuple[float, ...]
    incoherence_steps: tuple[float, ...]
    prepared_incoherence_steps: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """The record of a run; no noise at all is null."""
        steps, prepared = (
            [_short(value) for value in values]
            for values in (self.incoherence_steps, self.prepared_incoherence_steps)
        )
        return {
            "sqnr_db": _finite(self.sqnr_db),
            "incoherence": max(steps),
            "prepared_incoherence": max(prepared),
            "sqnr_db_steps": [_finite(value) for value in self.sqnr_db_steps],
            "incoherence_steps": steps,
            "prepared_incoherence_steps": prepared,
        }


def drift(
    float_pipeline: Pipeline,
    pipeline: Pipeline,
    conditions: Sequence[str | int],
    *,
    seed: int = 0,
    batch: int = 8,
) -> Drift:
    """How far the latents of `pipeline` are from the float ones after each step, from the same noise."""
    reference, states = (
        trajectory(each, conditions, seed=seed, batch=batch) for each in (float_pipeline, pipeline)
    )
    return Drift.between(times(pipeline), reference, states)


def times(pipeline: Pipeline) -> list[float]:
    """The time that the model is given in each step."""
    return np.asarray(pipeline.plan().rows()["t"], float).tolist()


def trajectory(
    pipeline: Pipeline,
    conditions: Sequence[str | int],
    *,
    seed: int = 0,
    batch: int = 8,
    advance: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "steps b *t h w c"]:
    """The latents after each step, of all conditions; float32.

    batch: samples a compiled call; a last batch that is smaller compiles once more. advance: called with the
    number of samples just done.
    """
    found = []
    plan = pipeline.plan()
    correction = pipeline.correction(plan)
    for call in pipeline.calls(conditions, seed=seed, batch=batch):
        found.append(np.asarray(states(pipeline.denoiser, call, correction, plan=plan)))
        if advance:
            advance(call.batch)
    return np.concatenate(found, axis=1)


def layer_noise(
    float_pipeline: Pipeline,
    pipeline: Pipeline,
    conditions: Sequence[str | int],
    stats: Stats | None = None,
    *,
    seed: int = 0,
    batch: int = 8,
) -> dict[str, LayerNoise]:
    """The noise of every quantized layer along the trajectory of the float model, by path.

    stats: those that `pipeline` was quantized with, if its recipe balances inputs of attention projections:
        these balances went into other weights, and the float model must be looked at in the same units.
    Raises ValueError if they are needed and absent, or if `pipeline` is not quantized.
    """
    if pipeline.recipe is None:
        raise ValueError("this pipeline is not quantized, so its layers have no noise; quantize it first.")
    rules = pipeline.recipe.resolve(float_pipeline.denoiser.weights())
    moved = folded(float_pipeline.denoiser, rules)
    if moved and stats is None:
        raise ValueError(
            f"the balances of {len(moved)} layers ({next(iter(moved))}, ...) went into the layers before"
            " them; give the statistics that the pipeline was quantized with."
        )
    reference, _ = fold(float_pipeline.denoiser, rules, stats or {})
    seen: dict[str, _Energy] = {}
    plan = float_pipeline.plan(bounds=pipeline.recipe.ranges)
    for call in float_pipeline.calls(conditions, seed=seed, batch=batch):
        found = _energies(reference, pipeline.denoiser, call, plan=plan)
        for path, energy in jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found).items():
            seen[path] = energy if path not in seen else seen[path].merge(energy)
    return {path: energy.finish() for path, energy in sorted(seen.items())}


class _Size(NamedTuple):
    """How large the numbers of some inputs are."""

    peak: Any  # largest |input|
    total: Any  # sum of |input|
    count: Any  # numbers

    @classmethod
    def of(cls, x: Array) -> "_Size":
        """That of these numbers."""
        return cls(jnp.abs(x).max(), jnp.abs(x).sum(), jnp.float32(x.size))

    def merge(self, other: "_Size") -> "_Size":
        """That of both."""
        peak = jnp.maximum(self.peak, other.peak)
        return _Size(peak, self.total + other.total, self.count + other.count)

    def incoherence(self) -> tuple[float, ...]:
        """Largest over mean."""
        return tuple(np.asarray(self.peak * self.count / np.maximum(self.total, 1e-30), float).tolist())


class _Energy(NamedTuple):
    """Sums over a layer's calls in one step, or arrays of them over the steps."""

    signal: Any  # squares of the float output
    noise: Any  # squares of what the quantized output differs
    inputs: _Size
    prepared: _Size

    def merge(self, other: "_Energy") -> "_Energy":
        """That of both."""
        return _Energy(
            self.signal + other.signal,
            self.noise + other.noise,
            self.inputs.merge(other.inputs),
            self.prepared.merge(other.prepared),
        )

    def finish(self) -> LayerNoise:
        """The figures of these sums."""
        return LayerNoise(
            _decibels(self.signal.sum(), self.noise.sum()),
            tuple(map(_decibels, self.signal, self.noise)),
            self.inputs.incoherence(),
            self.prepared.incoherence(),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Paired:
    """A float weight beside its quantized form: computes with the first and measures the second.

    Not a pytree: it must not enter a jit or a scan.
    """

    weight: Any
    quantized: Any
    path: str
    seen: dict[str, _Energy]

    def linear(
        self, x: Float[Array, "... k"] | Modulated, bias: Array | None, after: After = NOTHING
    ) -> Float[Array, "... n"]:
        """What the float weight computes."""
        exact = _float32(x)
        y, other = linear(self.weight, exact, bias), linear(self.quantized, exact, bias)
        energy = _Energy(
            jnp.square(y).sum(),
            jnp.square(other - y).sum(),
            _Size.of(plain(exact)),
            _Size.of(self.quantized.inputs(exact)),
        )
        earlier = self.seen.get(self.path)
        self.seen[self.path] = energy if earlier is None else earlier.merge(energy)
        return linear(self.weight, x, bias, after)


@partial(jax.jit, static_argnames="plan")
def _energies(net: Net, small: Net, call: Call, *, plan: Plan) -> dict[str, _Energy]:
    """What the quantized layers add, [steps] each.

    Layers that see the prompt alone run once, and say the same in every step.
    """
    index = jnp.asarray(plan.range_index())
    prompt, once = _measure(
        net, at_range(small, index[0]), lambda tapped: encode_prompt(tapped, call.conditions)
    )

    def look(x: Array, t: Array, i: Array, _: None) -> tuple[Array, None, dict[str, _Energy]]:
        def predict(tapped: Net) -> Array:
            return guided_model(tapped, call, plan.guidance, prompt)(x, t, i)

        out, seen = _measure(net, at_range(small, index[i]), predict)
        return out, None, seen

    x = call.start()
    *_, seen = follow(look, plan.sampler, x, plan.sampler.init(x), call.keys, plan.rows(), None)
    return {**seen, **jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (plan.steps,)), once)}


def _measure(net: Net, small: Net, run: Callable[[Net], Any]) -> tuple[Any, dict[str, _Energy]]:
    """The result of `run(net)`, and what the quantized layers of `small` would have added to it."""
    seen: dict[str, _Energy] = {}
    quantized = {path: weight for path, weight in small.weights().items() if quantized_part(weight)}

    def pair(path: str, weight: Any) -> Any:
        return _Paired(weight, quantized[path], path, seen) if path in quantized else weight

    return run(net.map_weights(pair)), dict(sorted(seen.items()))


def _float32(x: Array | Modulated) -> Array | Modulated:
    if isinstance(x, Modulated):
        return x._replace(**{name: getattr(x, name).astype(jnp.float32) for name in ("x", "shift", "scale")})
    return x.astype(jnp.float32)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _finite(value: float) -> float | None:
    return _short(value) if math.isfinite(value) else None
