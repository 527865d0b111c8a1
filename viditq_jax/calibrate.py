"""Statistics of the inputs of each linear layer, from real sampling trajectories of the float model.

They are collected inside the compiled sampling loop, in one pass, and no activation is stored. With a file
they survive a kill: every batch is added to it, and the next run goes on behind it with the same result.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Array

from viditq_jax.checkpoint import fingerprint
from viditq_jax.conditions import check_conditions
from viditq_jax.files import writing
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call, Plan, encode_prompt, guided_model
from viditq_jax.quant.observe import observe
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.stats import LayerStats, Moving, Stats, merge_stats
from viditq_jax.sampling.sample import follow


def calibrate(
    pipeline: Pipeline,
    conditions: Sequence[str | int],
    recipe: Recipe,
    *,
    texts: Sequence[str] = (),
    seed: int = 0,
    batch: int = 8,
    steps: int | None = None,
    file: str | Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> Stats:
    """What `quantize` has to know of the inputs of each layer, in each of the recipe's denoising ranges.

    conditions: the prompts or classes to run, guided as in use. batch: samples a compiled call; a smaller
        last batch compiles once more. steps: the sampler's default where not given.
    texts: more prompts, for the layers that see nothing but the prompt. Of a dozen prompts these see a few
        words, and a rounding fits them alone; more words cost no sampling.
    file: where the statistics are kept, as safetensors. If it holds those of the same run, cut short,
        only the batches that it lacks are run. advance: called with the number of samples just done.
    Raises ValueError if the pipeline is quantized, if the recipe does not fit, if an input was not finite,
    and if the file is of another run.
    """
    if pipeline.recipe is not None:
        raise ValueError(
            "statistics are of the float model; load the float artifact that this one came from."
        )
    check_conditions(conditions)
    if isinstance(texts, str):
        raise ValueError(f"one string was given as the texts; put it in a list: [{texts[:40]!r}].")
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1.")
    weights = pipeline.denoiser.weights()
    rules = recipe.resolve(weights)
    grams = frozenset(path for path, rule in rules.items() if rule.needs_gram)
    plan = pipeline.plan(steps=steps, bounds=recipe.ranges)
    if unseen := sorted(set(range(recipe.range_count)) - set(plan.range_index().tolist())):
        raise ValueError(
            f"{plan.steps} steps of this sampler have no time in the ranges {unseen} of the bounds"
            f" {list(recipe.ranges)}; calibrate with more steps, or give other bounds."
        )
    run = {
        "conditions": [str(condition) for condition in conditions],
        "texts": list(texts),
        "seed": seed,
        "batch": batch,
        "steps": plan.steps,
        "ranges": list(recipe.ranges),
        "grams": sorted(grams),
        "sampler": pipeline.facts["sampler"],
        "guidance": pipeline.facts["guidance"],
        "weights": fingerprint(pipeline.nets()) if file else "",
    }
    done, stats = _resume(Path(file), run) if file and Path(file).exists() else (0, {})
    if advance and done:
        advance(done)
    if not done:
        stats = _of_texts(pipeline, texts, batch, recipe.range_count, grams)
    for call in pipeline.calls(conditions, seed=seed, batch=batch, first=done):
        seen = _trajectory(pipeline.denoiser, call, plan=plan, grams=grams)
        stats = merge_stats(stats, seen) if stats else seen
        del seen  # Gram matrices of a large model are gigabytes
        _check(stats)
        if file:
            done += call.batch
            save_stats(stats, file, {**run, "done": done})
        if advance:
            advance(call.batch)
    counts = jax.device_get({path: layer.count for path, layer in stats.items()})
    return {path: layer for path, layer in stats.items() if (counts[path] > 0).any()}


def _check(stats: Stats) -> None:
    totals = jax.device_get({path: (layer.count, layer.total) for path, layer in stats.items()})
    bad = [
        path for path, (count, total) in totals.items() if (count > 0).any() and not np.isfinite(total).all()
    ]
    if bad:
        raise ValueError(
            f"{len(bad)} layers saw inputs that are not finite: {', '.join(bad[:5])}"
            f"{' ...' if len(bad) > 5 else ''}. Scales cannot come from"
            f" them; check the checkpoint, or load it in bfloat16 or float32."
        )


def _of_texts(
    pipeline: Pipeline, texts: Sequence[str], batch: int, ranges: int, grams: frozenset[str]
) -> Stats:
    """The statistics of prompts that are not sampled. Raises ValueError for a model that takes none."""
    if texts and pipeline.facts["conditions"]["kind"] != "prompt":
        raise ValueError("this model takes no prompts, so there are no texts to calibrate with.")
    stats: Stats = {}
    for start in range(0, len(texts), batch):
        conditions = pipeline.encode(texts[start : start + batch], guide=False)
        seen = _prompt_alone(pipeline.denoiser, conditions, ranges=ranges, grams=grams)
        stats = merge_stats(stats, seen) if stats else seen
    return stats


@partial(jax.jit, static_argnames=("ranges", "grams"))
def _prompt_alone(net: Net, conditions: dict[str, Any], *, ranges: int, grams: frozenset[str]) -> Stats:
    """The statistics of what depends on the prompt alone, which counts in every range: each sees it alike.

    Padding, which nothing attends to, does not count.
    """
    empty = {
        path: LayerStats.empty(weight.shape[1], ranges, gram=path in grams)
        for path, weight in net.weights().items()
    }
    real = _without_padding(conditions)
    return observe(net, lambda tapped: encode_prompt(tapped, real), empty, r=slice(None), initial=True)[1]


@partial(jax.jit, static_argnames=("plan", "grams"))
def _trajectory(net: Net, call: Call, *, plan: Plan, grams: frozenset[str]) -> Stats:
    """The statistics of one batch over all of its denoising steps; what depends on the prompt runs once."""
    stats = _prompt_alone(net, call.conditions, ranges=len(plan.bounds) + 1, grams=grams)
    prompt, index = encode_prompt(net, call.conditions), jnp.asarray(plan.range_index())

    def look(x: Array, t: Array, i: Array, stats: Stats) -> tuple[Array, Stats, None]:
        def predict(tapped: Net) -> Array:
            return guided_model(tapped, call, plan.guidance, prompt)(x, t, i)

        return *observe(net, predict, stats, r=index[i], initial=i == 0), None

    x = call.start()
    _, _, stats, _ = follow(look, plan.sampler, x, plan.sampler.init(x), call.keys, plan.rows(), stats)
    return stats


def _without_padding(conditions: dict[str, Any]) -> dict[str, Any]:
    """The conditions with the real tokens of each prompt over and over where its padding was."""
    if "mask" not in conditions:
        return conditions
    y, mask = conditions["y"], conditions["mask"]
    real = jnp.argsort(~mask, axis=1, stable=True)  # positions of real tokens first
    place = jnp.arange(y.shape[1]) % jnp.maximum(mask.sum(1, keepdims=True), 1)
    position = jnp.take_along_axis(real, place, axis=1)
    return {**conditions, "y": jnp.take_along_axis(y, position[..., None], axis=1)}


def save_stats(stats: Stats, file: str | Path, facts: Mapping[str, Any]) -> None:
    """Write statistics and what they are of as one safetensors file, which appears whole or not at all."""
    arrays = {
        f"{path}|{name}": np.asarray(value)
        for path, layer in stats.items()
        for name, value in _fields(layer).items()
        if value is not None
    }
    with writing(file) as partial_file:
        try:
            safetensors.numpy.save_file(arrays, partial_file, {"facts": json.dumps(facts)})
        except safetensors.SafetensorError as error:  # how the package reports a full disk
            raise OSError(str(error)) from error


def load_stats(file: str | Path) -> tuple[Stats, dict[str, Any]]:
    """What `save_stats` wrote: statistics and facts. Raises ValueError for a file that it did not write."""
    if not Path(file).is_file():
        raise ValueError(f"{file} is no file of statistics; make one with `viditq calibrate`.")
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            facts = json.loads((opened.metadata() or {})["facts"])
            if not isinstance(facts, dict) or not isinstance(facts.get("conditions", []), list):
                raise ValueError("its facts are no object that lists conditions")
            arrays = {name: jnp.asarray(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
        layers: dict[str, dict[str, Any]] = {}
        for name, value in arrays.items():
            path, field = name.rsplit("|", 1)
            layers.setdefault(path, {})[field] = value
        return {path: _layer(fields) for path, fields in sorted(layers.items())}, facts
    except (
        safetensors.SafetensorError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"{file} is no file of statistics ({type(error).__name__}: {error}); calibrate again."
        ) from error


def _fields(layer: LayerStats) -> dict[str, Any]:
    own = {name: value for name, value in vars(layer).items() if name != "moving"}
    return {**own, **{f"moving.{name}": value for name, value in vars(layer.moving).items()}}


def _layer(fields: dict[str, Any]) -> LayerStats:
    moving = Moving(*(fields[f"moving.{field.name}"] for field in dataclasses.fields(Moving)))
    own = (field.name for field in dataclasses.fields(LayerStats) if field.name not in ("moving", "gram"))
    layer = LayerStats(**{name: fields[name] for name in own}, moving=moving, gram=fields.get("gram"))
    wanted = LayerStats.empty(layer.initial.shape[0], len(layer.count), gram=layer.gram is not None)
    if jax.tree.map(jnp.shape, layer) != jax.tree.map(jnp.shape, wanted):
        raise ValueError("its arrays do not fit together")
    if wrong := {str(leaf.dtype) for leaf in jax.tree.leaves(layer)} - {"float32"}:
        raise ValueError(f"its arrays are {', '.join(sorted(wrong))} and not float32")
    return layer


def _resume(file: Path, run: dict[str, Any]) -> tuple[int, Stats]:
    """How many conditions are done, and their statistics."""
    stats, facts = load_stats(file)
    differs = [key for key, value in run.items() if json.loads(json.dumps(value)) != facts.get(key)]
    if differs:
        raise ValueError(
            f"{file} holds statistics of another {', '.join(differs)}; choose another file for this run."
        )
    done = facts.get("done")
    if type(done) is not int or not 0 < done <= len(run["conditions"]):
        raise ValueError(f"{file} does not say how far it got; delete it, and calibrate again.")
    return done, stats


def check_stats_file(facts: Mapping[str, Any], pipeline: Pipeline, recipe: Recipe) -> None:
    """Raise ValueError if statistics with these facts are not whole, or of another model or recipe."""
    if facts.get("done") != len(facts.get("conditions", ())):
        raise ValueError(
            "these statistics were cut short; run `viditq calibrate` again with the same flags, it goes on."
        )
    wanted = {"ranges": list(recipe.ranges), "weights": fingerprint(pipeline.nets())}
    if differs := [key for key, value in wanted.items() if facts.get(key) != value]:
        raise ValueError(
            f"these statistics are of another {' and '.join(differs)}; calibrate this model with this recipe."
        )
