"""Statistics of the inputs of each linear layer, from real sampling trajectories of the float model.

They are collected inside the compiled sampling loop, in one pass, and no activation is stored: the statistics
ride in the memory of the sampler.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Guidance, guided_model
from viditq_jax.quant.observe import observe
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.stats import LayerStats, Stats, merge_stats
from viditq_jax.sampling.sample import Sampler, draw_noise, sample_keys
from viditq_jax.sampling.sample import advance as run_rows
from viditq_jax.sampling.sample import rows as sampler_rows


@dataclasses.dataclass(frozen=True)
class _Gathering:
    """A sampler that also merges the statistics which `denoise` gives beside its prediction."""

    sampler: Sampler
    empty: Stats

    def table(self, steps: int) -> Any:
        return self.sampler.table(steps)

    def init(self, x: Array) -> Any:
        return self.sampler.init(x), self.empty

    def step(
        self, x: Array, out: Any, row: Mapping[str, Array], memory: Any, keys: Array
    ) -> tuple[Array, Any]:
        prediction, seen = out
        inner, stats = memory
        x, inner = self.sampler.step(x, prediction, row, inner, keys)
        return x, (inner, merge_stats(stats, seen))


def calibrate(
    pipeline: Pipeline,
    conditions: Sequence[str | int],
    recipe: Recipe,
    *,
    seed: int = 0,
    batch: int = 8,
    steps: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> Stats:
    """What `quantize` has to know of the inputs of each layer: smallest and largest value of each channel.

    conditions: the prompts or classes to run, guided as in use. batch: samples a compiled call; a last batch
    that is smaller compiles once more. steps: the sampler's default where not given. advance: called with the
    number of samples just done, for a progress bar.
    Raises ValueError if the pipeline is quantized, if a rule of the recipe matches no layer, and if an input
    was not finite.
    """
    if pipeline.recipe is not None:
        raise ValueError(
            "statistics are of the float model; load the float artifact that this one came from."
        )
    recipe.resolve(pipeline.denoiser.weights())
    stats: Stats = {}
    for start in range(0, len(conditions), batch):
        part = conditions[start : start + batch]
        keys = sample_keys(seed, start, len(part))
        seen = _trajectory(
            pipeline.denoiser,
            pipeline.encode(part, guide=pipeline.guidance.scale != 1),
            jnp.float32(pipeline.guidance.scale),
            draw_noise(keys, pipeline.latent_shape()),
            keys,
            sampler=pipeline.sampler,
            steps=pipeline.steps if steps is None else steps,
            guidance=dataclasses.replace(pipeline.guidance, scale=0.0)
            if pipeline.guidance.scale != 1
            else None,
        )
        stats = merge_stats(stats, seen)
        if advance:
            advance(len(part))
    stats = {path: layer for path, layer in stats.items() if int(layer.count)}
    if bad := [path for path, layer in stats.items() if not jnp.isfinite(layer.absmax).all()]:
        raise ValueError(
            f"{len(bad)} layers saw inputs that are not finite: {', '.join(bad[:5])}"
            f"{' ...' if len(bad) > 5 else ''}. Scales cannot come from"
            f" them; check the checkpoint, or load it in bfloat16 or float32."
        )
    return stats


@partial(jax.jit, static_argnames=("sampler", "steps", "guidance"))
def _trajectory(
    net: Net,
    conditions: dict[str, Any],
    scale: Float[Array, ""],
    noise: Float[Array, "b h w c"],
    keys: Any,
    *,
    sampler: Any,
    steps: int,
    guidance: Guidance | None,
) -> Stats:
    """The statistics of one batch over all of its denoising steps."""

    def denoise(x: Array, t: Array, i: Array) -> Any:
        return observe(net, lambda tapped: guided_model(tapped, conditions, scale, guidance)(x, t, i))

    empty = {path: LayerStats.empty(weight.shape[1]) for path, weight in net.weights().items()}
    gathering = _Gathering(sampler, empty)
    _, (_, stats) = run_rows(
        denoise, gathering, noise, gathering.init(noise), keys, sampler_rows(sampler, steps)
    )
    return stats
