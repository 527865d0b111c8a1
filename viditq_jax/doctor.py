"""What this machine will do with a model, before any weight is loaded: devices, kernels, memory.

For pipelines of shapes alone, as `load.describe` gives them: a denoising step is traced to see which
implementation each op takes, and the compiler says what memory its programs need.
"""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from viditq_jax import programs
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call
from viditq_jax.speed import example_call, layer_calls


def devices() -> list[dict[str, Any]]:
    """Of this process: kind, platform, and bytes where the device tells."""
    found = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}
        entry: dict[str, Any] = {"kind": device.device_kind, "platform": device.platform}
        if "bytes_limit" in stats:
            entry |= {"bytes": stats["bytes_limit"], "bytes_in_use": stats.get("bytes_in_use", 0)}
        found.append(entry)
    return found


def kernels(pipeline: Pipeline, batch: int) -> list[dict[str, Any]]:
    """What computes each op of a denoising step, from a trace: op, sizes, how often, implementation, and of
    every other one why not.
    """
    with dispatch.choices() as made:
        layer_calls(pipeline, batch=batch)
    counted = Counter((each.op, each.shapes) for each in made)
    kinds = {(each.op, each.shapes): each for each in made}
    return [
        {
            "op": op,
            "shapes": [list(shape) for shape in shapes],
            "calls": counted[op, shapes],
            "implementation": each.implementation,
            "measured": each.measured,
            "others": each.others,
        }
        for (op, shapes), each in kinds.items()
    ]


def memory(pipeline: Pipeline, batch: int, *, compiled: bool = False) -> dict[str, int]:
    """Bytes: of the arrays of each part, and of what a batch takes.

    compiled: ask the compiler as well what the sampling loop and the decoder need beside them, which takes
    as long as compiling them does.
    """
    found = {name: net.nbytes() for name, net in pipeline.nets().items()}
    call = _abstract_call(pipeline, batch)
    found["latents"] = call.noise.size * call.noise.dtype.itemsize
    if compiled:
        plan = pipeline.plan()
        loop = programs.denoise.lower(pipeline.denoiser, call, None, plan=plan).compile()
        found["sampling loop"] = _temporaries(loop)
        if pipeline.decoder is not None:
            noise = jax.ShapeDtypeStruct(call.noise.shape, jnp.float32)
            found["decoding"] = _temporaries(programs.decode.lower(pipeline.decoder, noise).compile())
    return found


def bfloat16_bytes(net: Net) -> int:
    """Of a Net with all its numbers in bfloat16."""
    return 2 * sum(
        value.shape[0] * value.shape[1] if hasattr(value, "linear") else value.size
        for value in (variable.get_value() for _, variable in net.variables())
    )


def _abstract_call(pipeline: Pipeline, batch: int) -> Call:
    guided = pipeline.plan().guidance is not None
    return jax.eval_shape(lambda: example_call(pipeline, batch=batch, guided=guided))


def _temporaries(compiled: Any) -> int:
    analysis = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)
