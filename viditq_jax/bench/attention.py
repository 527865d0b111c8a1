"""The op attention, in floats and with 8-bit queries and keys, against JAX's own; at several head sizes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.attention import attention
from viditq_jax.bench.device import on_cpu
from viditq_jax.bench.ops import attempt, nbytes
from viditq_jax.bench.timing import interleaved

HEAD_SIZES = (72, 80, 128)  # that of a width of 1152 in 16 heads; what it may be padded to
_HEADS = 16
CPU_TOKENS = 1024  # of one sample; an accelerator has two samples of 4096
BASELINE = "jax.nn"


def case_name(size: int) -> str:
    """What is timed: the self-attention of PixArt-Sigma, of one picture with guidance."""
    return f"pixart-sigma-{512 if on_cpu() else 1024} self-attention, head size {size}"


def bench_attention(
    size: int, ceilings: dict[str, float], *, samples: int, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of one head size, all of bfloat16, against `jax.nn`; and of what is not there the reason."""
    batch, tokens = (1, CPU_TOKENS) if on_cpu() else (2, 4096)
    keys = jax.random.split(jax.random.key(0), 6)
    shape = (batch, tokens, _HEADS, size)
    drawn = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    pool = [{"q": q, "k": k, "v": v} for q, k, v in (drawn[:3], drawn[3:])]
    works, left_out = {}, {}
    for name, compute in _variants().items():

        def run(operands: dict[str, jax.Array], compute: Callable[..., jax.Array] = compute) -> jax.Array:
            return compute(*(operands[each] for each in "qkv"))

        outcome = attempt(run, pool)
        if isinstance(outcome, str):
            left_out[name] = outcome
        else:
            works[name], _ = outcome
    times = interleaved(works, samples=samples, seconds=seconds)
    flop, moved = 4 * batch * _HEADS * tokens**2 * size, nbytes(pool[0]) * 4 // 3
    ceiling = max(flop / ceilings["bfloat16_flop_per_s"], moved / ceilings["copy_bytes_per_s"])
    facts = {"op": "attention", "m": batch * tokens, "tokens": tokens, "heads": _HEADS, "head_size": size}
    base = times[BASELINE]
    return [
        {
            "case": case_name(size),
            **facts,
            "implementation": name,
            **timing.to_json(),
            "float": "bfloat16",
            "baseline_median_s": base.to_json()["median_s"],
            "ratio_vs_float": round(base.median_s / timing.median_s, 4),
            "flop": flop,
            "bytes": moved,
            "fraction_of_ceiling": float(f"{ceiling / timing.median_s:.4g}"),
        }
        for name, timing in times.items()
    ], left_out


def _variants() -> dict[str, Callable[..., jax.Array]]:
    """JAX's own; and each implementation of the op, in floats and in 8 bits."""
    found: dict[str, Callable[..., jax.Array]] = {BASELINE: jax.nn.dot_product_attention}
    for name in dispatch.implementations("attention"):
        found[name] = partial(attention, implementation=name)
        found[f"{name}, 8-bit queries and keys"] = partial(attention, implementation=name, qk_bits=8)
    return found
