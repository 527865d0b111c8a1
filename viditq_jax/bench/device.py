"""What a record says of where it was made: device, versions, and the ceilings that were measured there."""

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import tuning
from pallas_kernels.scaled_matmul import scaled_matmul
from viditq_jax.bench.timing import Work, in_a_row, interleaved
from viditq_jax.checkpoint import versions

_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu", "torch", "triton", "jax-triton", "qwix")


def on_cpu() -> bool:
    """Whether the default device is the CPU."""
    return jax.devices()[0].platform == "cpu"


def header() -> dict[str, Any]:
    """Device, cores, versions and date."""
    device = jax.devices()[0]
    facts: dict[str, Any] = {
        "device": tuning.device_name(),
        "platform": device.platform,
        "name": tuning.host_name() if on_cpu() else device.device_kind,
        "cores": len(os.sched_getaffinity(0)) if on_cpu() else getattr(device, "core_count", None),
        "host": f"{tuning.host_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {**versions(), **_installed()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if (capability := getattr(device, "compute_capability", None)) is not None:
        facts["compute_capability"] = str(capability)
    if driver := getattr(device.client, "platform_version", ""):
        facts["driver"] = " ".join(driver.split())
    return facts


def _installed() -> dict[str, str]:
    found = {}
    for name in _PLUGINS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def ceilings(*, side: int | None = None, megabytes: int | None = None, samples: int = 10) -> dict[str, float]:
    """What is reached here: FLOP/s of a large product of each type, and bytes/s of a large copy.

    Products and copy are XLA's; of int8 it is the faster of XLA's and of scaled_matmul's.

    side: of the square products, 8192 on an accelerator and 2048 on a CPU where not given. megabytes: that a
    copy reads, and writes again; 512 and 128.
    """
    side = side or (2048 if on_cpu() else 8192)
    megabytes = megabytes or (128 if on_cpu() else 512)
    keys = jax.random.split(jax.random.key(0), 4)

    def product(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        a, b = pair
        return jax.lax.dot_general(
            a,
            b,
            (((1,), (1,)), ((), ())),  # both with k contiguous, as weights are stored
            precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
            preferred_element_type=jnp.int32 if a.dtype == jnp.int8 else a.dtype,
        )

    works = {}
    for dtype in (jnp.bfloat16, jnp.float32, jnp.int8):
        a, b, c = (_random(key, (side, side), dtype) for key in keys[:3])
        works[jnp.dtype(dtype).name] = in_a_row(product, [(a, b), (b, c), (c, a)])
    one = jnp.ones((1, 1), jnp.float32)
    pairs = [(a, b), (b, c), (c, a)]
    works["scaled_matmul"] = in_a_row(lambda pair: scaled_matmul(pair[0], pair[1], one, one), pairs)
    works["copy"] = _copies(_random(keys[0], (megabytes << 20 >> 2,), jnp.float32))
    times = {name: timing.median_s for name, timing in interleaved(works, samples=samples).items()}
    times["int8"] = min(times["int8"], times.pop("scaled_matmul"))
    flop, moved, copy = 2 * side**3, 2 * (megabytes << 20), times.pop("copy")
    return {
        **{f"{name}_flop_per_s": float(f"{flop / seconds:.4g}") for name, seconds in times.items()},
        "copy_bytes_per_s": float(f"{moved / copy:.4g}"),
        "matmul_side": side,
        "copy_bytes": moved,
    }


def _copies(x: jax.Array) -> Work:
    """Passes that read and write everything, in place: fresh memory would be timed with its page faults."""
    calls, held = 8, [x]
    negate = partial(jax.lax.fori_loop, 0, calls, lambda _, x: -x)
    program = jax.jit(negate, donate_argnums=0)

    def launch(_: int) -> jax.Array:
        held[0] = program(held[0])
        return held[0]

    return Work(launch, calls)


def _random(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if dtype == jnp.int8:
        return jax.random.randint(key, shape, -127, 128, jnp.int32).astype(jnp.int8)
    return jax.random.normal(key, shape, dtype)
