"""The published full sizes with random weights: convert, quantize, one step; time and peak memory of each.

    python examples/02_full_size.py --models dit-xl-2-256 pixart-sigma-xl-2-256

No weights are downloaded: a checkpoint of the right shapes is written under the original names first. Every
stage runs in a process of its own, so that its peak memory is its own. Needs about 4 GB of disk and prints
one JSON record a model.
"""

import argparse
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

STAGES = ("write", "convert", "quantize", "step")


def write(name: str, folder: Path) -> dict[str, Any]:
    """A checkpoint in bfloat16 under the original names."""
    import jax.numpy as jnp
    import ml_dtypes
    import numpy as np

    from converters import export, save_safetensors
    from viditq_jax import plugins
    from viditq_jax.net import abstract

    model = name.split("-")[0]
    module = plugins.find("viditq_jax.models", model)
    rng = np.random.default_rng(0)

    def draw(_: str, variable: Any) -> Any:
        shape = variable.get_value().shape
        return jnp.asarray((rng.standard_normal(shape, np.float32) * 0.03).astype(ml_dtypes.bfloat16))

    net = abstract(module.build, module.CONFIGS[name]).map_variables(draw)
    save_safetensors(folder / f"{name}.safetensors", export(net, model, module.CONFIGS[name]))
    return {"checkpoint_bytes": (folder / f"{name}.safetensors").stat().st_size}


def convert(name: str, folder: Path) -> dict[str, Any]:
    """To an artifact. The model's own bytes come with the record, to compare the peak memory with."""
    from converters import convert as read
    from viditq_jax import checkpoint

    artifact = read(folder / f"{name}.safetensors", model=name)
    checkpoint.save(artifact, folder / "float")
    size = sum(file.stat().st_size for file in (folder / "float").rglob("*") if file.is_file())
    return {"artifact_bytes": size}


def quantize(name: str, folder: Path) -> dict[str, Any]:
    """To int8 weights and inputs; data-free, as random weights have nothing to calibrate."""
    from viditq_jax import load_pipeline, load_recipe
    from viditq_jax.quant.size import weight_bytes

    pipeline = load_pipeline(folder / "float").quantized(load_recipe("w8a8-dynamic"))
    pipeline.save(folder / "w8a8")
    sizes = weight_bytes(pipeline.denoiser).values()
    stored, dense = sum(row.stored for row in sizes), sum(row.dense for row in sizes)
    return {
        "layers": len(sizes),
        "weight_bytes": stored,
        "bfloat16_weight_bytes": dense,
        "ratio": stored / dense,
    }


def step(name: str, folder: Path) -> dict[str, Any]:
    """One forward pass of the quantized denoiser; the second call is timed, after compilation."""
    import jax
    import jax.numpy as jnp

    from viditq_jax import load_pipeline

    pipeline = load_pipeline(folder / "w8a8")
    x = jax.random.normal(jax.random.key(0), (1, *pipeline.latent_shape()), jnp.bfloat16)

    @jax.jit
    def run(net: Any, x: jax.Array) -> jax.Array:
        t = jnp.full(1, 500.0)
        if pipeline.facts["conditions"]["kind"] == "label":
            return net(x, t, jnp.zeros(1, jnp.int32))
        config = pipeline.facts["denoiser"]["config"]
        text = jnp.ones((1, config["text_length"], config["caption_channels"]), x.dtype)
        return net(x, t, net.call("encode_prompt", text, jnp.ones(text.shape[:2], bool)))

    out = run(pipeline.denoiser, x).block_until_ready()
    started = time.perf_counter()
    run(pipeline.denoiser, x).block_until_ready()
    return {
        "seconds_per_step": round(time.perf_counter() - started, 3),
        "finite": bool(jnp.isfinite(out).all()),
    }


def main() -> None:
    """Run all stages of all models, each in a process of its own, and print the records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["dit-xl-2-256", "pixart-sigma-xl-2-256"])
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder where not given")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        started = time.perf_counter()
        record = globals()[options.stage](options.models[0], options.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**record, "seconds": round(time.perf_counter() - started, 1), "peak_bytes": peak}))
        return
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            record: dict[str, Any] = {"model": name, "date": datetime.now(UTC).date().isoformat()}
            record["device"] = f"{platform.machine()} CPU"
            for stage in STAGES:
                print(f"{name}: {stage} ...", file=sys.stderr, flush=True)
                command = [sys.executable, __file__, "--stage", stage, "--models", name, "--folder", folder]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                record[stage] = json.loads(output.splitlines()[-1])
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
