"""Calibration at a published full size with random weights: its time and its peak memory.

    python examples/03_calibrate_full_size.py --model pixart-sigma-xl-2-512-ms --file runs/sigma.safetensors

Beyond the example before: real trajectories with guidance, 8 prompts of 10 steps, whose statistics survive a
kill: started again with the same flags, it goes on behind the last prompt. Prints one JSON record.
"""

import argparse
import dataclasses
import json
import platform
import resource
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from viditq_jax import calibrate, load_pipeline, load_recipe
from viditq_jax.checkpoint import versions
from viditq_jax.models import pixart, t5
from viditq_jax.net import Net, abstract
from viditq_jax.pipeline import Pipeline


def random_net(net: Net, seed: int, dtype: Any) -> Net:
    """An abstract Net with random values; the same seed gives the same.

    Drawn by NumPy: a program for each shape would take longer to compile than to draw its numbers.
    """
    rng = np.random.default_rng(seed)

    def draw(_: str, variable: Any) -> jax.Array:
        values = 0.03 * rng.standard_normal(variable.get_value().shape, np.float32)
        return jnp.asarray(values.astype(dtype))

    return net.map_variables(draw)


def random_pipeline(name: str, config: pixart.Config, dtype: Any = jnp.float32) -> Pipeline:
    """A PixArt of this shape with the packaged tokenizer and a text encoder of one layer."""
    packaged = load_pipeline()
    text = t5.Config(
        num_layers=1, d_model=config.caption_channels, d_ff=64, num_heads=2, d_kv=32,
        vocab_size=packaged.facts["text_encoder"]["config"]["vocab_size"],
    )  # fmt: skip
    side = 8 * config.input_size
    facts = {
        "denoiser": {"model": "pixart", "config": dataclasses.asdict(config)},
        "text_encoder": {"model": "t5", "config": dataclasses.asdict(text)},
        "tokenizer": {**packaged.facts["tokenizer"], "max_length": config.text_length},
        "sampler": {"name": "dpm_solver", "options": {}, "steps": 10},
        "guidance": {"scale": 4.5},
        "conditions": {"kind": "prompt", "clean_caption": True},
        "image_size": [side, side],
        "source": {"denoiser": {"format": "original", "file": name}},
        "dtype": jnp.dtype(dtype).name,
    }
    return Pipeline(
        facts=facts,
        denoiser=random_net(abstract(pixart.build, config), 0, dtype),
        text_encoder=random_net(abstract(t5.build, text), 1, dtype),
        files=packaged.files,
    )


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Calibrate, and print the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pixart-sigma-xl-2-512-ms", choices=sorted(pixart.CONFIGS))
    parser.add_argument("--recipe", default="w4a8-balanced")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--depth", type=int, help="fewer blocks, to try it out")
    parser.add_argument("--file", type=Path, required=True, help="where the statistics are kept")
    options = parser.parse_args(arguments)
    config = pixart.CONFIGS[options.model]
    config = dataclasses.replace(config, depth=options.depth or config.depth)
    pipeline = random_pipeline(options.model, config)
    prompts = [f"prompt number {i}" for i in range(options.prompts)]
    started, done = time.perf_counter(), []

    def advance(count: int) -> None:
        done.append(count)
        print(f"{sum(done)} of {len(prompts)} prompts, {time.perf_counter() - started:.0f} s", flush=True)

    stats = calibrate(
        pipeline, prompts, load_recipe(options.recipe), batch=1, file=options.file, advance=advance
    )
    record = {
        "model": options.model,
        "recipe": options.recipe,
        "layers": len(stats),
        "prompts": len(prompts),
        "prompts_of_this_run": len(prompts) - (done[0] if len(done) < len(prompts) else 0),
        "steps": pipeline.steps,
        "pixels": pipeline.image_size[0],
        "dtype": pipeline.facts["dtype"],
        "seconds": round(time.perf_counter() - started, 1),
        "model_bytes": sum(net.nbytes() for net in pipeline.nets().values()),
        "file_bytes": options.file.stat().st_size,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device": f"{platform.machine()} CPU",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    print(json.dumps(record))
    return record


if __name__ == "__main__":
    main()
