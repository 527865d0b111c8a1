"""A video model of the published full size with random weights: convert, quantize to w8a8 and w4a8, one step.

    nice python examples/04_full_size_video.py --models stdit-xl-2-16x512x512

Beyond the examples before: 16 frames of 512x512, 16384 tokens. No weights are downloaded: a checkpoint of the
right shapes is written under the original names first. Statistics are made up too, as random weights have
nothing to calibrate; sizes are those of a real calibration. Every stage runs in a process of its own, so that
its peak memory is its own. Needs 5 GB of disk, and prints one JSON record a model.
"""

import argparse
import dataclasses
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RECIPES = ("w8a8", "w4a8")
STAGES = ("write", "convert", *(f"{what}:{recipe}" for recipe in RECIPES for what in ("quantize", "step")))


def write(name: str, folder: Path) -> dict[str, Any]:
    """A checkpoint in bfloat16 under the original names."""
    import jax.numpy as jnp
    import ml_dtypes
    import numpy as np

    from converters import export, save_safetensors
    from viditq_jax.models import stdit
    from viditq_jax.net import abstract

    rng = np.random.default_rng(0)

    def draw(_: str, variable: Any) -> Any:
        shape = variable.get_value().shape
        return jnp.asarray((rng.standard_normal(shape, np.float32) * 0.03).astype(ml_dtypes.bfloat16))

    net = abstract(stdit.build, stdit.CONFIGS[name]).map_variables(draw)
    file = folder / f"{name}.safetensors"
    save_safetensors(file, export(net, "stdit", stdit.CONFIGS[name]))
    return {"checkpoint_bytes": file.stat().st_size}


def convert(name: str, folder: Path) -> dict[str, Any]:
    """To an artifact."""
    from converters import convert as read
    from viditq_jax import checkpoint

    checkpoint.save(read(folder / f"{name}.safetensors", model=name), folder / "float")
    size = sum(file.stat().st_size for file in (folder / "float").rglob("*") if file.is_file())
    return {"artifact_bytes": size}


def quantize(recipe_name: str, folder: Path) -> dict[str, Any]:
    """Under the recipe, every weight rounded to nearest: other roundings give as many bytes."""
    from viditq_jax import load_pipeline, load_recipe
    from viditq_jax.bench.models import made_up_stats
    from viditq_jax.quant.size import weight_bytes

    pipeline, recipe = load_pipeline(folder / "float"), load_recipe(recipe_name)
    rules = tuple(dataclasses.replace(rule, rounding="nearest") for rule in recipe.rules)
    recipe = dataclasses.replace(recipe, rules=rules)
    small = pipeline.quantized(recipe, made_up_stats(pipeline.denoiser, recipe))
    small.save(folder / recipe_name)
    sizes = weight_bytes(small.denoiser).values()
    stored, dense = sum(row.stored for row in sizes), sum(row.dense for row in sizes)
    return {
        "layers": len(sizes),
        "weight_bytes": stored,
        "bfloat16_weight_bytes": dense,
        "ratio": round(stored / dense, 4),
    }


def step(recipe_name: str, folder: Path) -> dict[str, Any]:
    """One step of the sampler from noise, without guidance, timed after compilation."""
    import jax
    import jax.numpy as jnp

    from viditq_jax import load_pipeline, programs
    from viditq_jax.speed import example_call

    pipeline = load_pipeline(folder / recipe_name)
    call = example_call(pipeline, batch=1, guided=False)
    plan = pipeline.plan(steps=1, scale=1.0)
    run = programs.denoise.lower(pipeline.denoiser, call, None, plan=plan).compile()
    started = time.perf_counter()
    latents = jax.block_until_ready(run(pipeline.denoiser, call, None))
    return {
        "latents": list(latents.shape),
        "seconds_per_step": round(time.perf_counter() - started, 1),
        "finite": bool(jnp.isfinite(latents).all()),
    }


def stage(text: str, name: str, folder: Path) -> dict[str, Any]:
    """What "convert" or "step:w8a8" gives, its time and its peak memory."""
    what, _, recipe = text.partition(":")
    started = time.perf_counter()
    record = globals()[what](recipe or name, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**record, "seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak}


def main() -> None:
    """Run all stages of all models, each in a process of its own, and print the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["stdit-xl-2-16x512x512"])
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder where not given")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(stage(options.stage, options.models[0], options.folder)))
        return
    from viditq_jax.checkpoint import versions

    for name in options.models:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            record: dict[str, Any] = {"model": name, "date": datetime.now(UTC).date().isoformat()}
            record |= {"device": f"{platform.machine()} CPU", "versions": versions()}
            for each in STAGES:
                print(f"{name}: {each} ...", file=sys.stderr, flush=True)
                command = [sys.executable, __file__, "--stage", each, "--models", name, "--folder", folder]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                record[each] = json.loads(output.splitlines()[-1])
                print(json.dumps({each: record[each]}), file=sys.stderr, flush=True)  # lest a kill loses it
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
