"""Measure the inputs of every layer along real trajectories: viditq calibrate runs/float --recipe w4a8

The statistics go to one safetensors file, which `viditq quantize --stats FILE` takes. A run that was killed
goes on behind its last batch, with the same result, when it is started again with the same flags.
"""

import dataclasses
import resource
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.calibrate import calibrate
from viditq_jax.cli._common import bar, calibrated_on, working
from viditq_jax.load import load_pipeline
from viditq_jax.quant.recipe import load_recipe


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq calibrate`."""

    source: Annotated[str, tyro.conf.Positional] = "default"
    """An artifact, a checkpoint, "default" or "default-video"."""
    recipe: str = "w4a8"
    """The recipe that the statistics are for: its denoising ranges, and what its layers need."""
    out: Path | None = None
    """The file; runs/RECIPE.safetensors where not given."""
    prompts: Path | None = None
    """Prompts, one a line, or a .jsonl or .csv with a field "prompt"."""
    count: int | None = None
    """Run only the first so many; of the other prompts of the file the text alone is looked at."""
    steps: int | None = None
    """Denoising steps; the sampler's own number where not given."""
    seed: int = 0
    """Seed of the noise."""
    batch: int = 8
    """Samples computed together, and lost at most when the run is killed."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Run the float model, and say what was seen, how long it took, and the most memory it took."""
    recipe = load_recipe(options.recipe)
    if options.count is not None and options.count < 1:
        raise ValueError(f"--count is {options.count}; run at least one condition.")
    with working("loading"):
        pipeline = load_pipeline(options.source)
    samples, texts = calibrated_on(pipeline, options.prompts, options.count)
    out = options.out or Path("runs") / f"{Path(options.recipe).stem}.safetensors"
    started = time.perf_counter()
    with bar("calibrating (the first batch compiles)", len(samples)) as advance:
        stats = calibrate(
            pipeline,
            samples,
            recipe,
            texts=texts,
            seed=options.seed,
            batch=min(options.batch, len(samples)),
            steps=options.steps,
            file=out,
            advance=advance,
        )
    facts = {
        "file": str(out),
        "bytes": out.stat().st_size,
        "layers": len(stats),
        "ranges": recipe.range_count,
        "grams": sum(layer.gram is not None for layer in stats.values()),
        "conditions": len(samples),
        "texts": len(texts),
        "steps": options.steps or pipeline.steps,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "incoherence": {
            path: [round(float(value), 2) for value in layer.incoherence] for path, layer in stats.items()
        },
    }
    return facts if options.json else _text(facts)


def _text(facts: dict[str, Any]) -> str:
    worst = sorted(facts["incoherence"].items(), key=lambda item: -max(item[1]))[:5]
    texts = f", and {facts['texts']} more texts" if facts["texts"] else ""
    lines = [
        f"{facts['file']}: {facts['layers']} layers, {facts['ranges']} ranges, {facts['grams']} Gram "
        f"matrices, {facts['bytes'] / 1e6:.1f} MB",
        f"{facts['conditions']} conditions of {facts['steps']} steps{texts} in {facts['seconds']} s, "
        f"peak memory {facts['peak_bytes'] / 1e9:.2f} GB",
        "largest incoherence (max / mean of |input|), a number a range:",
    ]
    return "\n".join([*lines, *(f"  {path:<34} {' '.join(map(str, values))}" for path, values in worst)])
