"""Float attention, by XLA and by cuDNN where it is there, at head sizes that kernels like and dislike."""

from typing import Any

import jax
import jax.numpy as jnp

from viditq_jax.bench.device import on_cpu
from viditq_jax.bench.ops import attempt, nbytes
from viditq_jax.bench.timing import interleaved

HEAD_SIZES = (72, 80, 128)  # that of a width of 1152 in 16 heads; what it may be padded to
_HEADS = 16
CPU_TOKENS = 1024  # of one sample; an accelerator has two samples of 4096
_IMPLEMENTATIONS = ("xla", "cudnn")


def case_name(size: int) -> str:
    """What is timed: the self-attention of PixArt-Sigma, of one picture with guidance."""
    return f"pixart-sigma-{512 if on_cpu() else 1024} self-attention, head size {size}"


def bench_attention(
    size: int, ceilings: dict[str, float], *, samples: int, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of one head size, all in bfloat16, against XLA; and of what is not there the reason."""
    batch, tokens = (1, CPU_TOKENS) if on_cpu() else (2, 4096)
    keys = jax.random.split(jax.random.key(0), 6)
    shape = (batch, tokens, _HEADS, size)
    drawn = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
    pool = [{"q": q, "k": k, "v": v} for q, k, v in (drawn[:3], drawn[3:])]
    works, left_out = {}, {}
    for name in _IMPLEMENTATIONS:

        def run(operands: dict[str, jax.Array], name: str = name) -> jax.Array:
            q, k, v = (operands[each] for each in "qkv")
            return jax.nn.dot_product_attention(q, k, v, implementation=name)  # type: ignore[call-overload]

        outcome = attempt(run, pool)
        if isinstance(outcome, str):
            left_out[name] = outcome
        else:
            works[name], _ = outcome
    times = interleaved(works, samples=samples, seconds=seconds)
    flop, moved = 4 * batch * _HEADS * tokens**2 * size, nbytes(pool[0]) * 4 // 3
    ceiling = max(flop / ceilings["bfloat16_flop_per_s"], moved / ceilings["copy_bytes_per_s"])
    facts = {"op": "attention", "m": batch * tokens, "tokens": tokens, "heads": _HEADS, "head_size": size}
    base = times["xla"]
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
            "fraction_of_ceiling": round(ceiling / timing.median_s, 4),
        }
        for name, timing in times.items()
    ], left_out
