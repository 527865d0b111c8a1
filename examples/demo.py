"""The whole way on the packaged model: convert, quantize, generate, evaluate, report. Writes runs/demo.

    make demo          (or: python examples/demo.py --out runs/demo)

Converts the packaged PyTorch checkpoint, calibrates and quantizes it to w8a8, w4a8 and w4a8-plus, makes the
same 16 pictures with all of them (and in float32, which shows how much rounding to bfloat16 alone changes),
compares them, follows the drift of the latents step by step, measures FID, perceptual distance and alignment
with intervals on 64 pictures each (benchmarks/quality.py does on 512), makes one short video with w8a8 and
w4a8, and draws the report.
"""

import argparse
import math
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from converters import convert
from viditq_jax import calibrate, checkpoint, evaluate, generate, load_pipeline, load_recipe
from viditq_jax.cli._common import bar, working
from viditq_jax.conditions import packaged_prompts
from viditq_jax.drift import Drift, times, trajectory
from viditq_jax.files import write_atomic, write_json
from viditq_jax.generate import Manifest
from viditq_jax.load import packaged_model
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import calibration_conditions, calibration_texts, quantize_pipeline
from viditq_jax.quality import measure
from viditq_jax.quant.size import weight_bytes
from viditq_jax.report import write_report
from viditq_jax.video import animation, side_by_side

RECIPES = ("w8a8", "w4a8", "w4a8-plus")
VIDEO_RECIPES = ("w8a8", "w4a8")
WRITTEN = {  # in the run folder
    "artifacts", "pictures", "more", "videos", "metrics.json", "grid.png", "recipes.png", "video.webp",
    "report.html",
}  # fmt: skip
SEED, BATCH, ROUNDS = 0, 8, 3
NOISES = 4  # of each prompt, in the pictures that quality is measured on; those after the first are in `more`
RESAMPLES = 300
VIDEO = "red apple moving left"


def clear(run: Path) -> None:
    """Remove an earlier run. Raises ValueError, and removes nothing, if the folder holds anything else."""
    if run.exists() and not run.is_dir():
        raise ValueError(f"{run} is a file; choose another --out.")
    held = {entry.name for entry in run.iterdir()} if run.exists() else set()
    if held - WRITTEN:
        raise ValueError(
            f"{run} holds {', '.join(sorted(held - WRITTEN)[:5])}, which no run of this demo wrote; "
            "choose another --out."
        )
    shutil.rmtree(run, ignore_errors=True)


def make_artifacts(run: Path, recipes: list[str], count: int) -> dict[str, Path]:
    """The float artifact, converted from the packaged checkpoint, and one a recipe; count: prompts to
    calibrate on, at most.
    """
    paths = {name: run / "artifacts" / name for name in ("float", *recipes)}
    with working("converting the packaged PyTorch checkpoint"), packaged_model("default") as folder:
        checkpoint.save(convert(folder), paths["float"])
    for name, small in quantized(load_pipeline(paths["float"]), recipes, count):
        small.save(paths[name])
    return paths


def quantized(pipeline: Pipeline, recipes: Sequence[str], count: int) -> Iterator[tuple[str, Pipeline]]:
    """The pipeline under each recipe. One calibration serves all: w4a8 wants all that the others do."""
    prompts = calibration_conditions(pipeline)[:count]
    with bar("calibrating", len(prompts)) as advance:
        stats = calibrate(
            pipeline,
            prompts,
            load_recipe("w4a8"),
            texts=calibration_texts(pipeline),
            seed=SEED,
            advance=advance,
        )
    for name in recipes:
        with working(f"quantizing to {name}"):
            small = quantize_pipeline(pipeline, load_recipe(name), prompts, stats=stats)
        yield name, small


def make_pictures(pipeline: Pipeline, prompts: list[str], out: Path, *, noises: int = 1) -> None:
    """Pictures of all prompts, from one noise each or from several that no other pictures have."""
    conditions, seed = prompts * noises, SEED if noises == 1 else SEED + 1
    with bar(f"{out.parent.name}/{out.name}: generate", len(conditions)) as advance:
        generate(pipeline, conditions, out, seed=seed, batch=min(BATCH, len(prompts)), advance=advance)


def measure_quality(run: Path, names: list[str], prompts: list[str]) -> dict[str, Any]:
    """FID, perceptual distance and alignment of all pictures, with intervals and what is worse than float."""
    pictures = {
        name: [image for part in ("pictures", "more") for image in Manifest.read(run / part / name).images()]
        for name in names
    }
    with bar("quality, with intervals", len(names)) as advance:
        found = measure(
            pictures, prompts * NOISES, reference="float", baseline="float", resamples=RESAMPLES,
            advance=advance,
        )  # fmt: skip
    return {"pictures": NOISES * len(prompts), "reference": "float", "baseline": "float", **found}


def seconds_per_image(pipelines: dict[str, Pipeline], prompts: list[str]) -> dict[str, float]:
    """Medians over rounds in which every variant takes its turn, so that what else the machine does hits all.

    Their programs are compiled.
    """
    batch = prompts[:BATCH]
    seen: dict[str, list[float]] = {name: [] for name in pipelines}
    with bar("seconds a picture", ROUNDS) as advance:
        for _ in range(ROUNDS):
            for name, pipeline in pipelines.items():
                started = time.perf_counter()
                pipeline(batch, seed=SEED)
                seen[name].append((time.perf_counter() - started) / len(batch))
            advance(1)
    return {name: round(statistics.median(times), 4) for name, times in seen.items()}


def latents(pipeline: Pipeline, prompts: list[str]) -> Any:
    """The latents of the first prompts after each step."""
    count = min(BATCH, len(prompts))
    with bar("latents of each step", count) as advance:
        return trajectory(pipeline, prompts[:count], seed=SEED, batch=count, advance=advance)


def compare(run: Path, name: str, reference: str, *, folder: str = "pictures") -> dict[str, float | None]:
    """PSNR and SSIM of two variants' pictures; None for the PSNR of equal pictures, which is infinite."""
    values = evaluate(run / folder / name, reference=run / folder / reference)
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def quality_lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    """For each quantized variant how much worse it is than float, in percent with its interval."""
    return [
        (
            name,
            ", ".join(
                f"{key.replace('_', ' ')} {each['value']:+.1f}% [{each['low']:+.1f}, {each['high']:+.1f}]"
                for key, each in found["degradation_percent"].items()
            ),
        )
        for name, found in record["variants"].items()
        if "degradation_percent" in found
    ]


def make_video(run: Path, count: int) -> dict[str, Any]:
    """One video in floats and under each recipe, its figures, and all side by side as `video.webp`.

    count: prompts to calibrate on, at most.
    """
    with working("loading the video model"):
        pipeline = load_pipeline("default-video")
    variants: dict[str, dict[str, Any]] = {}
    videos = {}
    for name, small in (("float", pipeline), *quantized(pipeline, VIDEO_RECIPES, count)):
        make_pictures(small, [VIDEO], run / "videos" / name)
        videos[name] = Manifest.read(run / "videos" / name).images()[0]
        variants[name] = {"pictures": f"videos/{name}", **compare(run, name, "float", folder="videos")}
    write_atomic(run / "video.webp", animation(side_by_side(videos), fps=pipeline.fps))
    return {"condition": VIDEO, "fps": pipeline.fps, "frames": pipeline.frames, "variants": variants}


def main(arguments: list[str] | None = None) -> None:
    """Run everything, and print the figures and where the report is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="run folder (default: %(default)s)"
    )
    parser.add_argument("--count", type=int, default=16, help="how many prompts (default: %(default)s)")
    parser.add_argument(
        "--recipes", nargs="+", choices=RECIPES, default=[*RECIPES], help="of the pictures (default: all)"
    )
    options = parser.parse_args(arguments)
    run, prompts = options.out, packaged_prompts()[: options.count]
    if not 1 <= options.count <= len(packaged_prompts()):
        parser.error(f"--count is 1 to {len(packaged_prompts())}, the number of packaged prompts.")
    try:
        clear(run)
    except ValueError as error:
        parser.error(str(error))
    paths = make_artifacts(run, options.recipes, options.count)
    variants: dict[str, dict[str, Any]] = {}
    pipelines = {name: load_pipeline(path) for name, path in paths.items()}
    reference = latents(pipelines["float"], prompts)
    for name, pipeline in pipelines.items():
        path = paths[name]
        make_pictures(pipeline, prompts, run / "pictures" / name)
        make_pictures(pipeline, prompts, run / "more" / name, noises=NOISES - 1)
        variants[name] = {
            "pictures": f"pictures/{name}",
            "weights": pipeline.denoiser.weights(),
            "artifact_bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
            "recipe": pipeline.recipe.to_json() if pipeline.recipe else None,
            **(compare(run, name, "float") if name != "float" else {"psnr_db": None, "ssim": None}),
        }
        if name != "float":
            drift = Drift.between(times(pipeline), reference, latents(pipeline, prompts))
            variants[name] |= {"latent_rel_l2": drift.final, "drift": drift.to_json()}
    layers = weight_bytes(pipelines[options.recipes[0]].denoiser)  # those that the recipes quantize
    seconds = seconds_per_image(pipelines, prompts)
    for name, record in variants.items():
        record["seconds_per_image"] = seconds[name]
        weights = record.pop("weights")
        leaves = jax.tree.leaves([weights[path] for path in layers])
        record["weight_bytes"] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        record["weight_disk_bytes"] = checkpoint.weight_disk_bytes(paths[name], "denoiser", layers)
        record["bfloat16_weight_bytes"] = sum(row.dense for row in layers.values())
    first = pipelines["float"]
    make_pictures(first.astype(jnp.float32), prompts, run / "pictures" / "float32")
    records = {
        "model": "the packaged emoji model",
        "prompts": len(prompts),
        "seed": SEED,
        "steps": first.steps,
        "sampler": first.facts["sampler"]["name"],
        "guidance": first.guidance.scale,
        "noise_floor": {"what": "bfloat16 against float32", **compare(run, "float", "float32")},
        "variants": variants,
        "quality": measure_quality(run, [*variants], prompts),
        "video": make_video(run, options.count),
        "device": jax.devices()[0].device_kind,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": checkpoint.versions(),
    }
    write_json(run / "metrics.json", records)
    picture, page = write_report(run)
    for name, record in variants.items():
        quality = (
            "" if record["psnr_db"] is None else f"{record['psnr_db']:.2f} dB, SSIM {record['ssim']:.4f}, "
        )
        ratio = record["weight_bytes"] / record["bfloat16_weight_bytes"]
        print(
            f"{name:<11} {quality}linear weights {ratio:.3f}x, {record['seconds_per_image']:.3f} s a picture"
        )
    print(f"quality of {records['quality']['pictures']} pictures each, 95% intervals:")
    print("\n".join(f"{name:<11} {line}" for name, line in quality_lines(records["quality"])))
    for name, record in records["video"]["variants"].items():
        if record["psnr_db"] is not None:
            print(
                f"video, {name:<4} {record['psnr_db']:.2f} dB, motion off by {record['motion_error_px']:.2f} "
                f"pixels, flicker of {record['flicker_levels']:.2f} levels"
            )
    print(f"{picture}\n{run / 'video.webp'}\n{page}\n{run / 'metrics.json'}")


if __name__ == "__main__":
    main()
