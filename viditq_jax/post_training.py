"""Post-training quantization of a pipeline, from a recipe and some conditions: all that a recipe asks for.

calibrate    statistics of the float model, where a rule needs them
quantize     the denoiser, layer by layer
tune         the rounding of whole blocks, where the recipe says so
correct      PTQD's correction, where the recipe says so
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from viditq_jax.calibrate import calibrate
from viditq_jax.conditions import packaged_prompts
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call, Plan, guided_model, parts, states
from viditq_jax.quant.apply import check_recipe
from viditq_jax.quant.audit import audit
from viditq_jax.quant.fold import fold
from viditq_jax.quant.methods import find_method
from viditq_jax.quant.recipe import Recipe, load_recipe
from viditq_jax.quant.stats import Stats
from viditq_jax.sampling.ptqd import correlation
from viditq_jax.sampling.sample import Denoise, follow
from viditq_jax.speed import warn_if_slower

CLASSES = 16  # that a class-conditional model is calibrated on where none are given
VIDEOS = 4  # that a class-conditional video model is; each has the tokens of many pictures


def quantize_pipeline(
    pipeline: Pipeline,
    recipe: Recipe | str | Path,
    conditions: Sequence[str | int] | None = None,
    *,
    texts: Sequence[str] | None = None,
    seed: int = 0,
    batch: int = 8,
    stats: Stats | None = None,
    advance: Callable[[int], None] | None = None,
) -> Pipeline:
    """The pipeline with its denoiser quantized, after whatever calibration the recipe needs.

    recipe: one, or what `load_recipe` takes.
    conditions: prompts or classes to calibrate on; `calibration_conditions` where not given. texts: as
        `calibrate` has them; `calibration_texts` where neither is given. stats: from `calibrate`, to use
        instead. batch, advance: as `calibrate` has them.
    Warns, see `speed`, of layers that were measured to be slower than in floats on this device.
    Raises ValueError and RecipeError as `calibrate` and `quantize` do.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if pipeline.recipe is not None:
        raise ValueError("this pipeline is quantized already; give the float pipeline that it came from.")
    check_recipe(pipeline.denoiser, recipe)
    if texts is None:
        texts = calibration_texts(pipeline) if conditions is None else ()
    samples = calibration_conditions(pipeline) if conditions is None else conditions
    if recipe.needs_stats and stats is None:
        stats = calibrate(pipeline, samples, recipe, texts=texts, seed=seed, batch=batch, advance=advance)
    small = pipeline.quantized(recipe, stats)
    if recipe.tuning:
        small = _tuned(pipeline, small, stats or {}, samples, seed, batch)
    if recipe.correction:
        small = _with_correction(pipeline, small, samples, seed, batch)
    warn_if_slower(small)
    return small


def default_conditions(pipeline: Pipeline) -> list[str | int]:
    """The packaged prompts, of things in motion for videos; for a class-conditional model, classes evenly
    spread; for one without conditions, numbers.
    """
    facts = pipeline.facts["conditions"]
    if facts["kind"] == "prompt":
        return list(packaged_prompts("default" if pipeline.frames is None else "default-video"))
    if facts["kind"] == "none":
        return [*range(CLASSES)]
    classes = int(facts["classes"])
    return [*range(0, classes, max(1, classes // CLASSES))][:CLASSES]


def calibration_conditions(pipeline: Pipeline) -> list[str | int]:
    """Other conditions than the default ones, so that these can judge what was calibrated; fewer for videos.

    GPTQ rounds weights for the inputs that it is shown: on those, samples err a third less than on others.
    """
    facts = pipeline.facts["conditions"]
    if facts["kind"] == "prompt":
        return list(packaged_prompts("calibration" if pipeline.frames is None else "calibration-video"))
    if facts["kind"] == "none":
        found = [*range(CLASSES, 2 * CLASSES)]
    else:
        stride = max(1, int(facts["classes"]) // CLASSES)
        found = [*range(stride // 2, int(facts["classes"]), stride)][:CLASSES]
    return list(found) if pipeline.frames is None else list(found[:: len(found) // VIDEOS or 1][:VIDEOS])


def calibration_texts(pipeline: Pipeline) -> list[str]:
    """Prompts for the layers that see nothing but the prompt; none for a model that takes no prompts."""
    if pipeline.facts["conditions"]["kind"] != "prompt":
        return []
    return packaged_prompts("calibration-text" if pipeline.frames is None else "calibration-text-video")


def _tuned(
    pipeline: Pipeline, small: Pipeline, stats: Stats, conditions: Sequence[str | int], seed: int, batch: int
) -> Pipeline:
    """The quantized pipeline with blocks tuned on what the float model meets along its trajectories."""
    recipe = small.recipe
    assert recipe is not None
    method = find_method("tuning", recipe.tuning)
    plan = pipeline.plan()
    # The middle of each of `times` parts of the trajectory.
    times = min(method.options.times, pipeline.steps)
    chosen = np.floor((np.arange(times) + 0.5) * pipeline.steps / times).astype(np.int32)
    t = jnp.asarray(pipeline.sampler.table(pipeline.steps)["t"])
    calls = []
    for call in pipeline.calls(conditions, seed=seed, batch=batch):
        after = states(pipeline.denoiser, call, plan=plan)
        x = jnp.concatenate([call.noise[None], after[:-1]])  # before each step
        calls += [(call, x[i], jnp.full(call.batch, t[i])) for i in chosen]

    def run(net: Net, met: tuple[Call, Array, Array]) -> Array:
        call, x, t = met
        return guided_model(net, call, plan.guidance)(x, t, jnp.int32(0))

    target, _ = fold(pipeline.denoiser, recipe.resolve(pipeline.denoiser.weights()), stats)
    tuned = method.module.tune(small.denoiser, target, run, calls, method.options)
    facts = {**small.facts, "layers": audit(pipeline.denoiser, tuned, recipe, stats)}
    return dataclasses.replace(small, denoiser=tuned, facts=facts)


def _with_correction(
    pipeline: Pipeline, small: Pipeline, conditions: Sequence[str | int], seed: int, batch: int
) -> Pipeline:
    """The quantized pipeline with PTQD's k of each step, measured along float trajectories."""
    plan = pipeline.plan(bounds=small.recipe.ranges if small.recipe else ())
    sums = np.zeros((pipeline.steps, 2))
    for call in pipeline.calls(conditions, seed=seed, batch=batch):
        found = _correlations(pipeline.denoiser, small.denoiser, call, plan=plan)
        sums = sums + np.asarray(found, np.float64)
    error, size = sums.T
    t = pipeline.sampler.table(pipeline.steps)["t"]
    entry = {"method": "ptqd", "t": np.asarray(t, float).tolist(), "k": (error / size).tolist()}
    return dataclasses.replace(small, facts={**small.facts, "correction": entry})


@partial(jax.jit, static_argnames="plan")
def _correlations(net: Net, small: Net, call: Call, *, plan: Plan) -> Float[Array, "steps 2"]:
    """`correlation` of the quantized and the float prediction in each step of the float trajectory."""
    model = guided_model(net, call, plan.guidance)

    def look(quantized: Denoise, x: Array, t: Array, i: Array, _: None) -> tuple[Array, None, Array]:
        out, other = model(x, t, i), quantized(x, t, i)
        return out, None, correlation(other, out, x.shape[-1])

    x, sums = call.start(), []
    memory = plan.sampler.init(x)
    for quantized, table in parts(small, call, plan):
        x, memory, _, seen = follow(partial(look, quantized), plan.sampler, x, memory, call.keys, table, None)
        sums.append(seen)
    return jnp.concatenate(sums)
