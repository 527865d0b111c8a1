"""Make pictures or videos: viditq generate --prompt "red apple" --recipe w8a8

The model is an artifact, a checkpoint, or packaged: with -m default-video --prompt "pizza spinning" it writes
an MP4, and all frames without loss in a PNG. With --recipe a float model is quantized in memory first. A run
that was killed goes on where it stopped when it is started again with the same flags.
"""

import dataclasses
import hashlib
import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from viditq_jax.cli._common import bar, conditions, quantized, working
from viditq_jax.generate import CONTACT, Request, generate, recorded_batch, share_of
from viditq_jax.load import load_pipeline
from viditq_jax.replicas import replica_mesh

LISTED = 32  # files that are shown


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq generate`."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "default"
    """An artifact, a checkpoint, "default" or "default-video"."""
    prompt: tuple[str, ...] = ()
    """Prompts, one picture each; the packaged ones where none is given."""
    prompts: Path | None = None
    """A file with one prompt a line, or a .jsonl or .csv with a field "prompt"."""
    label: tuple[int, ...] = ()
    """Class indices, for class-conditional models."""
    num: int | None = None
    """How many samples; prompts or labels are taken in turns, each time with other noise."""
    recipe: str | None = None
    """Quantize in memory first: a packaged recipe, or a JSON file."""
    out: Path | None = None
    """Folder of the pictures; where not given, one under runs named after the prompt and the flags."""
    seed: int = 0
    """Sample i draws its noise from (seed, i)."""
    steps: int | None = None
    """Denoising steps."""
    guidance: float | None = None
    """Guidance scale; 1 is none."""
    sampler: str | None = None
    """ddim, iddpm, dpm_solver or flow_euler, where another than the model's own is wanted."""
    size: tuple[int, int] | None = None
    """Height and width in pixels."""
    frames: int | None = None
    """Frames of a video, where another number than the model's own is wanted."""
    negative: str = ""
    """The negative prompt."""
    batch: int = 8
    """Samples that a device computes together."""
    mesh: tuple[int, int] = (1, 1)
    """Replicas side by side, and devices that share the quantized weights of each."""
    shard: tuple[int, int] = (0, 1)
    """I N: make every N-th batch from I on; N processes, one each, fill one folder."""
    json: bool = False
    """Print the manifest as JSON."""


def run(options: Options) -> Any:
    """Load, quantize if asked, generate, and say where the pictures are."""
    mesh = None if options.mesh == (1, 1) else replica_mesh(*options.mesh)
    with working("loading"):
        pipeline = load_pipeline(options.model, mesh=None if options.recipe else mesh)
    if options.sampler:
        pipeline = pipeline.with_sampler(options.sampler)
    samples = conditions(options.prompt, options.prompts, options.label, pipeline)
    if options.num is not None:
        if options.num < 1:
            raise ValueError(f"--num is {options.num}; ask for at least one sample.")
        samples = [samples[i % len(samples)] for i in range(options.num)]
    out = options.out or default_folder(options)
    # A run of a few samples, which made them all in one small batch, goes on in such batches.
    batch = min(options.batch, recorded_batch(out) or len(samples))
    mine = sum(map(len, share_of(len(samples), batch, options.shard)))
    if options.recipe:
        wanted = Request(options.seed, batch, options.steps, options.guidance, options.size, options.frames,
                         options.negative)  # fmt: skip
        wanted.check(pipeline, samples, out)
        pipeline = quantized(pipeline, options.recipe)
    started = time.perf_counter()
    with bar("generating (the first batch compiles)", mine) as advance:
        manifest = generate(
            pipeline,
            samples,
            out,
            seed=options.seed,
            batch=batch,
            steps=options.steps,
            guidance=options.guidance,
            size=options.size,
            frames=options.frames,
            negative=options.negative,
            mesh=mesh,
            shard=options.shard,
            advance=advance,
        )
    if options.json:
        return {"folder": str(out), "samples": manifest.entries}
    seconds, video = time.perf_counter() - started, manifest.fps is not None
    lines = [
        f"{out / entry['video' if video else 'file']}  {entry['condition']}" for entry in manifest.entries
    ]
    made = f"{len(lines)} {'videos' if video else 'pictures'} in {seconds:.1f} s"
    if len(lines) < len(samples):
        return f"{out} holds {len(lines)} of {len(samples)}; other shards make the rest"
    if len(lines) > LISTED:
        lines = [*lines[:LISTED], f"and {len(lines) - LISTED} more in {out}"]
    return "\n".join([*lines, f"{made}; at a glance: {out / CONTACT}" if video else made])


def default_folder(options: Options) -> Path:
    """The same folder for the same flags, so that a killed run finds its pictures, and another for others."""
    recipe = f"-{Path(options.recipe).stem}" if options.recipe else ""
    # how the work is divided changes no picture
    plain = dataclasses.replace(options, recipe=None, json=False, mesh=(1, 1), shard=(0, 1))
    if plain == Options():
        return Path("runs") / f"generate{recipe}"
    flags = json.dumps(dataclasses.asdict(plain), sort_keys=True, default=str)
    words = "-".join(re.findall(r"[a-z0-9]+", " ".join(options.prompt[:1]).lower()))[:40] or "generate"
    return Path("runs") / f"{words}{recipe}-{hashlib.sha256(flags.encode()).hexdigest()[:6]}"
