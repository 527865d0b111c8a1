"""One transformer block of PixArt at full width, small enough for a CPU; and rivals on the same weights."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from viditq_jax.bench import models
from viditq_jax.bench.models import Workload
from viditq_jax.bench.ops import nbytes
from viditq_jax.bench.pipelines import float_dtypes, ideal, memory, row_of
from viditq_jax.bench.timing import Work, interleaved
from viditq_jax.net import Net
from viditq_jax.quant.recipe import load_recipe

CASE = "pixart block, width 1152, 1024 tokens"
WORKLOAD = Workload(CASE, config="pixart-sigma-xl-2-512-ms", batch=1, guided=False, depth=1)
_POOL = 2

# (net in bfloat16, inputs) -> what to launch with input i, by name; and of those that are absent the reason
Rivals = Callable[[Net, Mapping[str, Any]], tuple[dict[str, Callable[[int], Any]], dict[str, str]]]


def bench_block(
    recipes: Sequence[str],
    ceilings: Mapping[str, float],
    *,
    samples: int,
    seconds: float,
    rivals: Rivals | None = None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of one block, and of rivals that are absent the reason.

    On a CPU recipes are timed with float32 around the integer products as well as with bfloat16.
    """
    works, extra = {}, {}
    net = models.float_pipeline(WORKLOAD, jnp.bfloat16).denoiser
    nets = {"bfloat16": net, **{name: models.quantized(net, load_recipe(name)) for name in recipes}}
    for dtype in float_dtypes():
        given, around = inputs(dtype), "" if dtype == "bfloat16" else f", {dtype} around"
        for name, each in nets.items():
            label = dtype if name == "bfloat16" else f"{name}{around}"
            cast = each.astype(jnp.dtype(dtype))
            works[label], compiled = _work(cast, given)
            extra[label] = {"parameter_bytes": _block_bytes(cast), **memory(compiled)}
    flop = models.step_flop(net, models.config_of(WORKLOAD, depth=1), 1)
    found, left_out = rivals(net, inputs("bfloat16")) if rivals else ({}, {})
    works |= {name: Work(launch) for name, launch in found.items()}
    times = interleaved(works, samples=samples, seconds=seconds)
    rows = []
    for name, timing in times.items():
        row = {"case": CASE, "part": "block", **row_of(name, times), **extra.get(name, {})}
        rows.append(row | (ideal(name, timing, flop, ceilings) if name in extra else {}))
    return rows, left_out


def inputs(dtype: str) -> dict[str, Any]:
    """Random ones: a pool of tokens, the modulation of a sample, the prompt's keys and values."""
    keys = jax.random.split(jax.random.key(0), 3 + _POOL)
    draw = partial(jax.random.normal, dtype=jnp.dtype(dtype))
    config = models.config_of(WORKLOAD, depth=1)
    side, width, heads = config.base_size, config.width, config.heads
    prompt = (1, config.text_length, heads, width // heads)
    return {
        "tokens": [draw(key, (1, side**2, width)) for key in keys[3:]],
        "modulation": draw(keys[0], (1, 6, width)),
        "kv": (draw(keys[1], prompt), draw(keys[2], prompt)),
        "height": side,
    }


def run_block(net: Net, x: jax.Array, modulation: jax.Array, kv: Any, *, height: int) -> jax.Array:
    """The first block of a PixArt."""
    block = nnx.merge(net.graphdef, net.params).blocks[0]
    result: jax.Array = block(x, modulation, kv, None, height)
    return result


def _work(net: Net, given: Mapping[str, Any]) -> tuple[Work, Any]:
    tokens, rest = given["tokens"], (given["modulation"], given["kv"])
    program = jax.jit(run_block, static_argnames="height")
    compiled = program.lower(net, tokens[0], *rest, height=given["height"]).compile()
    return Work(lambda i: compiled(net, tokens[i % _POOL], *rest)), compiled


def _block_bytes(net: Net) -> int:
    held = [variable.get_value() for name, variable in net.variables() if name.startswith("blocks/")]
    return nbytes(held)
