"""Whole models: a denoising step, the sampling loop and pictures, in floats and under recipes.

All variants of a part are timed in turn in one run. Memory is told three ways: the bytes of the parameters;
what the compiled denoiser needs at once, as its compiler says; and where the device counts, the peak that it
counted in a process of its own.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from viditq_jax import plugins, programs
from viditq_jax.bench import models
from viditq_jax.bench.device import on_cpu
from viditq_jax.bench.models import Flop, Workload, step_flop
from viditq_jax.bench.ops import baseline, nbytes, ratios
from viditq_jax.bench.profile import shares
from viditq_jax.bench.timing import Timing, Work, interleaved
from viditq_jax.load import config_from_json
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call, Plan
from viditq_jax.quant.ranges import at_range
from viditq_jax.quant.recipe import load_recipe

_POOL = 2  # inputs to rotate through; the weights alone are more than caches hold
Built = tuple[Work, Any]  # what to time, and the compiled denoiser


def float_dtypes() -> tuple[str, ...]:
    """The float variants: bfloat16, and on a CPU float32 before it."""
    return ("float32", "bfloat16") if on_cpu() else ("bfloat16",)


def variant(workload: Workload, name: str) -> Pipeline:
    """The pipeline in floats of this dtype, or in bfloat16 under the recipe of this name."""
    if name in float_dtypes():
        pipeline, recipe = models.float_pipeline(workload, jnp.dtype(name)), None
        net = pipeline.denoiser
    else:
        pipeline, recipe = models.float_pipeline(workload, jnp.bfloat16), load_recipe(name)
        net = models.quantized(pipeline.denoiser, recipe)
    return dataclasses.replace(pipeline, denoiser=models.deep(net, workload), recipe=recipe)


def bench_workload(
    workload: Workload,
    recipes: Sequence[str],
    ceilings: Mapping[str, float],
    *,
    parts: Sequence[str] = ("step", "loop", "pictures"),
    samples: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """The rows of one model: of each part, floats and recipes.

    parts: "step", one call of the denoiser; "loop", noise to latents; "pictures", noise to pixels, of models
    that have a decoder. samples, seconds: of a part, as `interleaved` has them. A step also has the share of
    the ideal that it reaches: its products at the rates of large ones, and nothing else; and where its time
    goes.
    """
    pipelines = {name: variant(workload, name) for name in (*float_dtypes(), *recipes)}
    rows = []
    for part in parts:
        if part == "pictures" and pipelines["bfloat16"].decoder is None:
            continue
        built = {name: _PARTS[part](pipeline, workload) for name, pipeline in pipelines.items()}
        works = {name: work for name, (work, _) in built.items()}
        times = interleaved(works, samples=samples, seconds=seconds)
        for name, pipeline in pipelines.items():
            row = {"case": f"{workload.name}, {part}", "part": part, **row_of(name, times)}
            row |= {"parameter_bytes": nbytes(pipeline.denoiser.params), **memory(built[name][1])}
            if part == "step":
                row |= ideal(name, times[name], _flop(pipeline, workload), ceilings)
                row["profile"] = shares(works[name].launch, built[name][1])
            else:
                row["images_per_second"] = float(f"{workload.batch / times[name].median_s:.4g}")
            rows.append(row)
    return rows


def row_of(name: str, times: Mapping[str, Timing]) -> dict[str, Any]:
    """The times of a variant beside those of the floats."""
    against = baseline()
    return {
        "recipe": name,
        **times[name].to_json(),
        "float": against,
        "baseline_median_s": times[against].to_json()["median_s"],
        **ratios(times, name),
    }


def ideal(name: str, timing: Timing, flop: Flop, ceilings: Mapping[str, float]) -> dict[str, Any]:
    """What a step costs, and the share of the ideal: int8 products under recipes, and floats as they are."""
    best = flop.ideal_s(ceilings, name if name in float_dtypes() else "int8")
    return {
        "linear_flop": flop.linear,
        "attention_flop": flop.attention,
        "fraction_of_ideal": float(f"{best / timing.median_s:.4g}"),
    }


def _flop(pipeline: Pipeline, workload: Workload) -> Flop:
    module = plugins.find("viditq_jax.models", pipeline.facts["denoiser"]["model"])
    config = config_from_json(module.Config, pipeline.facts["denoiser"]["config"])
    config = dataclasses.replace(config, depth=len(_blocks(pipeline.denoiser)))
    return step_flop(pipeline.denoiser, config, workload.batch * (1 + workload.guided))


def _blocks(net: Net) -> set[str]:
    return {path.split("/")[1] for path in net.weights() if path.startswith("blocks/")}


def memory(compiled: Any) -> dict[str, int]:
    """What a compiled program needs at once: arguments, results and temporaries."""
    analysis = compiled.memory_analysis()
    sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    needed = sum(getattr(analysis, size) for size in sizes) - analysis.alias_size_in_bytes
    return {"program_bytes": needed}


def step(pipeline: Pipeline, workload: Workload) -> Built:
    """One step from noise, the prompt's keys and values made before."""
    call, plan = models.call(pipeline, workload, 0), pipeline.plan(steps=workload.steps)
    net = pipeline.denoiser
    prompt = jax.jit(lambda net, call: programs.encode_prompt(at_range(net, 0), call.conditions))(net, call)
    t = jnp.full(workload.batch, plan.rows()["t"][0], jnp.float32)
    compiled = _one_step.lower(net, call, prompt, call.start(), t, plan=plan).compile()
    states = [models.call(pipeline, workload, seed).start() for seed in range(_POOL)]
    return Work(lambda i: compiled(net, call, prompt, states[i % _POOL], t)), compiled


@partial(jax.jit, static_argnames="plan")
def _one_step(net: Net, call: Call, prompt: Any, x: jax.Array, t: jax.Array, *, plan: Plan) -> jax.Array:
    return programs.guided_model(at_range(net, 0), call, plan.guidance, prompt)(x, t, jnp.int32(0))


def _loop(pipeline: Pipeline, workload: Workload) -> Built:
    """All steps, as `Pipeline.latents` runs them; the prompt's keys and values are made in it."""
    calls = [models.call(pipeline, workload, seed) for seed in range(_POOL)]
    plan = pipeline.plan(steps=workload.steps)
    compiled = programs.denoise.lower(pipeline.denoiser, calls[0], None, plan=plan).compile()
    return Work(lambda i: compiled(pipeline.denoiser, calls[i % _POOL], None)), compiled


def _pictures(pipeline: Pipeline, workload: Workload) -> Built:
    """All steps, and the decoder."""
    work, compiled = _loop(pipeline, workload)
    decoder = pipeline.decoder
    assert decoder is not None
    return Work(lambda i: programs.decode(decoder, work.launch(i))), compiled


_PARTS: dict[str, Callable[[Pipeline, Workload], Built]] = {
    "step": step,
    "loop": _loop,
    "pictures": _pictures,
}


def measured_peak(workload: Workload, name: str, *, timeout_s: float = 180) -> int | None:
    """Bytes of device memory that one step of a variant needed at most; None where the device does not tell.

    Counters of a device are of a process and never fall, so that each variant has a process of its own.
    """
    if not jax.devices()[0].memory_stats():
        return None
    done = subprocess.run(
        [sys.executable, "-m", "viditq_jax.bench.peak", json.dumps(dataclasses.asdict(workload)), name],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the peak of {workload.name}, {name} was not measured: {done.stderr[-300:]}")
    return int(done.stdout.splitlines()[-1])
