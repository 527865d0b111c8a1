"""FID, perceptual distance and alignment of the packaged model, quantized, with intervals.

    python benchmarks/quality.py --out runs/quality --record benchmarks/records/quality-image.json

Draws the packaged prompts again and again with every variant, each with its own noise, and measures them by
the packaged metric network. Pictures that are there are kept: after a kill, run the same command again.
`python benchmarks/readme.py` then writes the table of the README. 2,560 pictures took half an hour on one
core of a shared CPU.
"""

import argparse
import hashlib
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import device_text
from viditq_jax import generate, load_pipeline, load_recipe
from viditq_jax.checkpoint import versions
from viditq_jax.cli._common import bar
from viditq_jax.conditions import packaged_prompts
from viditq_jax.files import write_json
from viditq_jax.generate import Manifest
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quality import MEANING, measure, real_pictures
from viditq_jax.report.quality import quality_section

FLOATS = ("float32", "bfloat16")
RECIPES = ("w8a8", "w4a8", "w4a8-plus")
SEED = 0  # of the pictures; calibration has the noise of the next


def variant(pipeline: Pipeline, name: str) -> Pipeline:
    """The pipeline in a float type, or by a recipe."""
    if name in FLOATS:
        return pipeline.astype(jnp.dtype(name))
    return quantize_pipeline(pipeline, load_recipe(name), seed=SEED + 1)


def make(name: str, conditions: list[str], out: Path, batch: int) -> list[np.ndarray]:
    """The pictures of a variant. Those that are there are kept, and refused if they are of other weights,
    which only a pipeline that is quantized again can tell.
    """
    with bar(name, len(conditions)) as advance:
        pipeline = variant(load_pipeline("default"), name)
        return generate(pipeline, conditions, out / name, seed=SEED, batch=batch, advance=advance).images()


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Draw, measure, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="where the pictures go")
    parser.add_argument("--record", type=Path, help="a JSON file; OUT/quality-image.json where not given")
    parser.add_argument("--count", type=int, default=512, help="pictures a variant (default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, default=16, help="pictures a compiled call (default: %(default)s)"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default: %(default)s)")
    options = parser.parse_args(arguments)
    prompts = packaged_prompts()
    if options.count % len(prompts) or options.count < 2 * len(prompts):
        parser.error(f"--count is {options.count}; it must be a multiple of {len(prompts)}, at least twice.")
    conditions = prompts * (options.count // len(prompts))
    pictures = {name: make(name, conditions, options.out, options.batch) for name in (*FLOATS, *RECIPES)}
    with bar("measure", len(pictures)) as advance:
        figures = measure(
            pictures, conditions, reference="float32", baseline="bfloat16", resamples=options.resamples,
            advance=advance,
        )  # fmt: skip
    settings = Manifest.read(options.out / "float32").settings
    weights = (resources.files("viditq_jax.assets") / "metric/model.safetensors").read_bytes()
    record = {
        "what": "quality of the packaged image model by the packaged metric network",
        "pictures": len(conditions),
        "prompts": len(prompts),
        "seed": SEED,
        "steps": settings["steps"],
        "sampler": settings["sampler"]["name"],
        "guidance": settings["guidance"],
        "batch": options.batch,
        "drawings": sum(map(len, real_pictures().values())),
        "metric_network_sha256": hashlib.sha256(weights).hexdigest(),
        "reference": "float32",
        "baseline": "bfloat16",
        "level": 0.95,
        "resamples": options.resamples,
        "meaning": MEANING,
        **figures,
        "device": jax.devices()[0].device_kind,
        "device_name": device_text(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    write_json(options.record or options.out / "quality-image.json", record)
    print(quality_section(record))
    return record


if __name__ == "__main__":
    main()
