"""A pipeline to programs: see the package."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from converters.safetensors_file import save_safetensors
from pallas_kernels.devices import Portable, tracing_for
from viditq_jax import facts as said
from viditq_jax import programs, sealed
from viditq_jax.checkpoint import named_arrays, versions
from viditq_jax.export._folder import (
    KIND,
    MODELS,
    PLATFORMS,
    any_conditions,
    file_of,
    like,
    need_flatbuffers,
    shapes,
    targets,
    weights_of,
)
from viditq_jax.files import write_atomic
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.programs import Call

_CORRECTION = "correction"  # among the arrays of the denoiser: PTQD's


def export_pipeline(
    pipeline: Pipeline,
    path: str | Path,
    *,
    batch: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    platforms: Sequence[str] = ("cpu",),
    overwrite: bool = False,
) -> Path:
    """Write the programs of a pipeline, and its weights once, as a folder that `load_exported` reads.

    batch: samples that a call makes. guidance: its scale where a call names none; 1 exports a program without
    guidance, any other one that takes every scale but 1. steps, size, frames: as of `Pipeline.latents`.
    platforms: of "cpu", "cuda" and "tpu".
    The folder appears under its name only when it is whole. Raises ArtifactError if it exists (unless
    `overwrite`) or cannot be written, and ValueError for what cannot be exported.
    """
    need_flatbuffers()
    path, platforms = Path(path), tuple(platforms)
    if not platforms or len(set(platforms) & set(PLATFORMS)) < len(platforms):
        raise ValueError(f"platforms {', '.join(platforms)}; choose of {', '.join(PLATFORMS)}, each once.")
    if batch < 1:
        raise ValueError(f"batch is {batch}; a program makes at least one sample.")
    if pipeline.mesh is not None:
        raise ValueError("a program is for one device; load the pipeline without a mesh to export it.")
    sealed.check_free(path, KIND, overwrite=overwrite)  # before the work

    plan = pipeline.plan(steps=steps, scale=guidance, size=size, frames=frames)
    conditions = any_conditions(pipeline.facts, batch)
    call = jax.eval_shape(
        lambda: pipeline.call(conditions, seed=0, guidance=guidance, size=size, frames=frames)
    )
    exported = _programs(pipeline, call, plan, platforms)
    facts = {
        "pipeline": {key: value for key, value in pipeline.facts.items() if key != "layers"},
        "recipe": pipeline.recipe.name if pipeline.recipe else None,
        "batch": batch,
        "steps": plan.steps,
        "guidance": pipeline.guidance.scale if guidance is None else guidance,
        "size": list(size or pipeline.image_size),
        "frames": said.frames_of(pipeline.facts, frames),
        "platforms": list(platforms),
        "programs": {name: shapes(each) for name, each in exported.items()},
        "versions": versions(),
    }
    with sealed.writing(path, KIND, facts, overwrite=overwrite) as partial:
        for name, each in exported.items():
            write_atomic(partial / file_of(name), bytes(each.serialize()))
        (partial / "weights").mkdir()
        for name in sorted({MODELS[each] for each in exported}):
            arrays = {key: np.asarray(leaf) for key, leaf in _arrays(pipeline, name, plan).items()}
            save_safetensors(partial / weights_of(name), arrays)
        for name, content in pipeline.files.items():
            write_atomic(partial / name, content)
    return path


def _programs(
    pipeline: Pipeline, call: Call, plan: programs.Plan, platforms: tuple[str, ...]
) -> dict[str, Any]:
    """The programs by name. All that varies from call to call is an argument, as are all weights."""

    def traced(function: Callable[..., Any], name: str, *rest: Any) -> Any:
        arrays = {key: like(leaf) for key, leaf in _arrays(pipeline, MODELS[name], plan).items()}
        with tracing_for(Portable(cpu=platforms == ("cpu",))):
            exported = jax.export.export(jax.jit(function), platforms=platforms)(arrays, *rest)
        if unknown := targets(exported):
            raise ValueError(
                f"the program {name} calls {', '.join(sorted(unknown))}, which other processes may not know; "
                "export with another sampler, or for other platforms."
            )
        return exported

    leaves, conditions = jax.tree.flatten(call.conditions)

    def denoise(
        arrays: dict[str, Array], leaves: tuple[Array, ...], scale: Array, noise: Array, keys: Array
    ) -> Array:
        given = Call(jax.tree.unflatten(conditions, leaves), scale, noise, keys)
        net = _net(pipeline.denoiser, arrays)
        return programs.trajectory(net, given, arrays.get(_CORRECTION), plan)[0]

    found = {"denoise": traced(denoise, "denoise", tuple(leaves), call.scale, call.noise, call.keys)}
    if (decoder := pipeline.decoder) is not None:
        latents = jax.ShapeDtypeStruct(call.noise.shape, jnp.float32)
        found["decode"] = traced(lambda a, x: programs.pixels(_net(decoder, a), x), "decode", latents)
    if (encoder := pipeline.text_encoder) is not None:
        length = int(pipeline.facts["tokenizer"]["max_length"])
        for name, rows in (("encode_text", call.batch), ("encode_null", 1)):
            ids, mask = (jax.ShapeDtypeStruct((rows, length), kind) for kind in (jnp.int32, jnp.bool_))
            found[name] = traced(lambda a, ids, mask: _net(encoder, a)(ids, mask), name, ids, mask)
    return found


def _arrays(pipeline: Pipeline, name: str, plan: programs.Plan) -> dict[str, Any]:
    """What the programs of a model take as weights, by name."""
    found = named_arrays(pipeline.nets()[name])
    correction = pipeline.correction(plan) if name == "denoiser" else None
    return found if correction is None else {**found, _CORRECTION: correction}


def _net(like: Net, arrays: Mapping[str, Array]) -> Net:
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named_arrays(like)])
