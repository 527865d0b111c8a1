"""Each op against the same computation in bfloat16 and float32 by XLA, and against what the device can.

All of a case is timed in turn in one run. The ceiling of a row is the longer of two times: its products at
the rate of a large product of that type, and its bytes, each operand read once and each result written once,
at the rate of a large copy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from viditq_jax.bench.cases import Case, Compute, Operands, run
from viditq_jax.bench.device import on_cpu
from viditq_jax.bench.timing import Timing, Work, in_a_row, interleaved

FLOATS = ("float32", "bfloat16")
_POOL_BYTES = 128 << 20  # more than any L2 holds
_POOL_MOST = 8


def baseline() -> str:
    """The float type that a record's `ratio_vs_float` compares with on this device."""
    return "float32" if on_cpu() else "bfloat16"


def bench_case(
    case: Case, ceilings: Mapping[str, float], *, samples: int, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of one case, and of each implementation that has none the reason.

    samples, seconds: as `interleaved` has them.
    """
    drawn = drawn_pool(case)
    encode = jax.jit(case.encode)
    pools = {dtype: jax.tree.map(lambda a, d=dtype: a.astype(d), drawn) for dtype in FLOATS}
    encoded = [encode(each) for each in drawn]
    works = {dtype: in_a_row(case.plain, pools[dtype]) for dtype in FLOATS}
    results = {dtype: work.launch(0)[0] for dtype, work in works.items()}
    left_out = {}
    for name in dispatch.implementations(case.op):
        outcome = attempt(run(case, name), encoded)
        if isinstance(outcome, str):
            left_out[name] = outcome
        else:
            works[name], results[name], pools[name] = *outcome, encoded
    times = interleaved(works, samples=samples, seconds=seconds)
    rows = [
        _row(case, name, times, ceilings, moved=nbytes(pools[name][0]) + nbytes(results[name]))
        | ({} if name in FLOATS else _difference(results["xla"], results[name]))
        for name in works
    ]
    return rows, left_out


def drawn_pool(case: Case) -> list[Operands]:
    """Operands to rotate through: two of each on a CPU; on an accelerator so many that their codes alone, a
    byte each, are more than its caches hold.
    """
    shape = case.facts
    codes = shape["k"] * (shape["m"] + shape.get("n", 0))
    count = 2 if on_cpu() else min(_POOL_MOST, max(2, -(-_POOL_BYTES // codes)))
    return [case.draw(key) for key in jax.random.split(jax.random.key(0), count)]


def attempt(fn: Compute, pool: Sequence[Operands]) -> tuple[Work, Any] | str:
    """What to time and the first result; or why there is none: unsupported here, or a failure."""
    try:
        work = in_a_row(fn, pool)
        result = jax.block_until_ready(work.launch(0))[0]  # compiles, once
    except dispatch.UnsupportedError as error:
        return f"unsupported: {error}"
    except Exception as error:  # whatever a compiler raises; one kernel's failure must not end the others
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return work, result


def _row(
    case: Case, name: str, times: Mapping[str, Timing], ceilings: Mapping[str, float], *, moved: int
) -> dict[str, Any]:
    timing, against = times[name], baseline()
    rate = ceilings[f"{name if name in FLOATS else 'int8'}_flop_per_s"]
    ceiling = max(case.flop / rate, moved / ceilings["copy_bytes_per_s"])
    return {
        "case": case.name,
        "op": case.op,
        **case.facts,
        "implementation": name,
        **timing.to_json(),
        "float": against,
        "baseline_median_s": times[against].to_json()["median_s"],
        **ratios(times, name),
        "flop": case.flop,
        "bytes": moved,
        "fraction_of_ceiling": float(f"{ceiling / timing.median_s:.4g}"),
    }


def ratios(times: Mapping[str, Timing], name: str) -> dict[str, float]:
    """How many times as fast as the floats a row is: more than 1 is faster."""
    found = {each: times[each].median_s / times[name].median_s for each in FLOATS if each in times}
    named = {f"ratio_vs_{each}": round(ratio, 4) for each, ratio in found.items()}
    return {"ratio_vs_float": round(found[baseline()], 4), **named}


def nbytes(tree: Any) -> int:
    """Of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _difference(expected: Any, found: Any) -> dict[str, float]:
    """How far a result is from that of XLA: relative L2 of its floats, the share of integers that differ."""
    pairs = list(zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True))
    floats = [pair for pair in pairs if jnp.issubdtype(pair[0].dtype, jnp.floating)]
    integers = [pair for pair in pairs if not jnp.issubdtype(pair[0].dtype, jnp.floating)]
    out = {}
    if floats:
        out["relative_l2_vs_xla"] = max(_relative(*pair) for pair in floats)
    if integers:
        out["unequal_vs_xla"] = max(float(jnp.mean(a != b)) for a, b in integers)
    return {name: float(f"{value:.3g}") for name, value in out.items()}


def _relative(expected: jax.Array, found: jax.Array) -> float:
    a, b = expected.astype(jnp.float32), found.astype(jnp.float32)
    return float(jnp.linalg.norm((a - b).ravel()) / jnp.maximum(jnp.linalg.norm(a.ravel()), 1e-30))
