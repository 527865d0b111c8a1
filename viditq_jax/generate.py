"""Many samples to files, with a manifest from which a killed run goes on.

    00000.png ...       one picture a condition, written under another name first; of a video its frames
                        side by side
    manifest.jsonl      a line a finished picture: index, condition, seed, file, sha256, and of a video its
                        frames; several processes write manifest-I-of-N.jsonl each, joined in the end
    generation.json     what all pictures share: seed, steps, guidance, size, model, recipe, device
    00000.mp4 ...       videos, to be watched
    contact.png         videos at a glance: a row each, a column a frame

A picture is listed only after its file is whole. Resuming skips what is listed and checks that it is still
there. What is there to be watched is no part of a run: it is made again from the frames where it is missing.

Batches lie on fixed multiples of their size, and a batch is computed by one replica alone, whose program
knows of no other. So pictures are the same, byte for byte, for any number of replicas and processes and
wherever a run was cut. With another size of batch, or another number of devices that share a replica, XLA
compiles another program, and they may differ. While devices compute a round of batches, the pictures of the
round before are written: at most three rounds are in memory.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8
from PIL import Image

from viditq_jax.checkpoint import fingerprint, versions
from viditq_jax.conditions import check_conditions
from viditq_jax.files import append_line, drop_torn_line, whole_lines, write_atomic, write_json
from viditq_jax.pipeline import Pipeline, check_finite
from viditq_jax.programs import Call, Plan
from viditq_jax.sampling.sample import sample_keys
from viditq_jax.video import contact_sheet, frames_of_strip, png, read_picture, strip, write_mp4

CONTACT = "contact.png"
LIST = "manifest.jsonl"
Round = tuple[Sequence[range], list[Any], list[Any]]  # of each replica: its samples, latents, pixels
_GUIDANCE_RULE = ("channels", "null", "mask", "order")  # what a scale alone does not say


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Where the samples are: `entries` in the order of the conditions, each with index, condition, file,
    sha256.
    """

    folder: Path
    entries: list[dict[str, Any]]
    settings: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """The manifest of a folder that `generate` wrote. Raises ValueError if there is none."""
        folder = Path(folder)
        if not (folder / "generation.json").is_file():
            missing = "holds no generation.json" if folder.is_dir() else "does not exist"
            raise ValueError(f"{folder} {missing}; give a folder that `viditq generate` wrote.")
        settings, entries = _read_record(folder / "generation.json"), _listed(folder)
        if "seed" not in settings:
            raise ValueError(f"{folder / 'generation.json'} holds no seed; generate the folder again.")
        fps = settings.get("fps")
        is_rate = isinstance(fps, (int, float)) and 0 < fps < math.inf
        if (fps is not None and not is_rate) or any(("video" in each) != is_rate for each in entries):
            raise ValueError(
                f"{folder}: manifest and generation.json ({fps!r} frames a second) are not of one run; "
                "generate it again."
            )
        return cls(folder, entries, settings)

    @property
    def fps(self) -> float | None:
        """Frames a second of videos; None of pictures."""
        return self.settings.get("fps")

    def images(self) -> list[np.ndarray]:
        """All pictures, uint8 [h, w, 3], or videos, [t, h, w, 3].

        Raises ValueError for one that is missing or altered.
        """
        return [self._image(entry) for entry in self.entries]

    def _image(self, entry: dict[str, Any]) -> np.ndarray:
        content = _content(self.folder, entry)
        if content is None:
            file = self.folder / entry["file"]
            raise ValueError(f"{file} is missing or altered since it was generated; generate it again.")
        picture = read_picture(content, self.folder / entry["file"])
        return frames_of_strip(picture, entry["frames"]) if "frames" in entry else picture

    def watchable(self) -> None:
        """Make the files to be watched that are missing; of pictures there are none."""
        if self.fps is None:
            return
        missing = [entry for entry in self.entries if not (self.folder / entry["video"]).is_file()]
        for entry in missing:
            write_mp4(self._image(entry), self.folder / entry["video"], fps=self.fps)
        if missing or not (self.folder / CONTACT).is_file():
            sheet = contact_sheet(self.images(), [str(entry["condition"]) for entry in self.entries])
            write_atomic(self.folder / CONTACT, png(sheet))


@dataclasses.dataclass(frozen=True)
class Request:
    """What all samples of a run share, beside the weights; fields as of `generate`."""

    seed: int = 0
    batch: int = 8
    steps: int | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    negative: str = ""

    def settings(self, pipeline: Pipeline, conditions: Sequence[str | int]) -> dict[str, Any]:
        """What generation.json says of it. Raises ValueError for what the pipeline cannot make."""
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be at least 1.")
        check_conditions(conditions)
        shape = pipeline.latent_shape(self.size, self.frames)
        plan = pipeline.plan(steps=self.steps, scale=self.guidance, size=self.size, frames=self.frames)
        plan.rows()
        pipeline.encoder.check_negative(self.negative, guide=plan.guidance is not None)
        sample_keys(self.seed, 0, 1)
        return {
            "seed": self.seed,
            "steps": plan.steps,
            "guidance": pipeline.guidance.scale if self.guidance is None else self.guidance,
            "guidance_rule": {name: pipeline.facts["guidance"].get(name) for name in _GUIDANCE_RULE},
            "size": list(self.size or pipeline.image_size),
            "frames": shape[0] if len(shape) == 4 else None,
            "fps": pipeline.fps,
            "negative": self.negative,
            "batch": self.batch,
            "sampler": pipeline.facts["sampler"],
            "denoiser": pipeline.facts["denoiser"],
            "dtype": pipeline.facts["dtype"],
            "source": pipeline.facts.get("source"),
            "device": jax.devices()[0].device_kind,
        }

    def check(self, pipeline: Pipeline, conditions: Sequence[str | int], out: Path) -> None:
        """Raise what `generate` would, but for the weights: before a calibration that takes long."""
        _done(out, self.settings(pipeline, conditions), conditions, resume=True)


def generate(
    pipeline: Pipeline,
    conditions: Sequence[str | int],
    out: str | Path,
    *,
    seed: int = 0,
    batch: int = 8,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    negative: str = "",
    resume: bool = True,
    mesh: Mesh | None = None,
    shard: tuple[int, int] | None = None,
    advance: Callable[[int], None] | None = None,
) -> Manifest:
    """Write one PNG a condition to `out`; of videos also an MP4 each, and a sheet of all.

    batch: samples that a replica computes at once; the last batch is padded, so that all of them share one
        program. mesh: of `replica_mesh`; the pipeline's own where not given. shard: (i, n) makes every n-th
        batch from i on; of `jax.distributed`, if that runs, where not given. The shards share the folder,
        which is whole when all of them are through; the one that finds it so joins their manifests.
    advance: called with the number of pictures that were just finished, for a progress bar.
    Raises ValueError if there are no conditions, if `out` holds pictures of other settings (or any, without
    `resume`), or if a listed picture is gone.
    """
    part, parts = shard = (jax.process_index(), jax.process_count()) if shard is None else shard
    if mesh is not None and pipeline.mesh != mesh:
        pipeline = pipeline.on(mesh)
    out, wanted = Path(out), Request(seed, batch, steps, guidance, size, frames, negative)
    settings = {
        **wanted.settings(pipeline, conditions),
        "recipe": pipeline.recipe.to_json() if pipeline.recipe else None,
        "correction": pipeline.facts.get("correction"),
        "weights": fingerprint(pipeline.nets()),
    }
    listed = out / (LIST if parts == 1 else f"manifest-{part}-of-{parts}.jsonl")
    mine = share_of(len(conditions), batch, shard)
    done = _done(out, settings, conditions, resume)
    if listed.is_file():
        drop_torn_line(listed)
    advance = advance or (lambda count: None)
    advance(sum(i in done for each in mine for i in each))
    todo = [each for each in mine if not done.issuperset(each)]

    def call(samples: range) -> Call:
        padded = [conditions[min(samples.start + i, len(conditions) - 1)] for i in range(batch)]
        return pipeline.call(
            padded,
            seed=seed,
            first=samples.start,
            guidance=guidance,
            size=size,
            frames=frames,
            negative=negative,
        )

    def write(batches: Sequence[range], pictures: Sequence[UInt8[np.ndarray, "b *t h w 3"]]) -> None:
        _record(out, settings)
        for samples, made in zip(batches, pictures, strict=False):  # replicas without a batch repeat the last
            for i, picture in zip(samples, made, strict=False):  # and so does a batch that is not full
                if i not in done:
                    _write(listed, i, conditions[i], seed, picture, pipeline.fps)
                    advance(1)

    plan = pipeline.plan(steps=steps, scale=guidance, size=size, frames=frames)
    _in_rounds(pipeline, plan, todo, call, write)
    manifest = Manifest.read(out)
    if len(manifest.entries) == len(conditions):
        _join(manifest)
        manifest.watchable()
    return manifest


def share_of(count: int, batch: int, shard: tuple[int, int]) -> list[range]:
    """The samples of each batch that is a shard's own. Raises ValueError for a shard that there is not, and
    for batches of none.
    """
    part, parts = shard
    if batch < 1:
        raise ValueError(f"batch is {batch}; it must be at least 1.")
    if not 0 <= part < parts:
        raise ValueError(f"shard {part} of {parts}; the first of n is 0, the last n - 1.")
    return [range(s, min(s + batch, count)) for s in range(part * batch, count, parts * batch)]


def _in_rounds(
    pipeline: Pipeline,
    plan: Plan,
    batches: Sequence[range],
    call: Callable[[range], Call],
    write: Callable[[Sequence[range], Sequence[np.ndarray]], None],
) -> None:
    """A batch for each replica in each round; devices compute the next round while one is written."""

    def compute() -> Iterator[Round]:
        for i in range(0, len(batches), pipeline.replicas):
            mine = batches[i : i + pipeline.replicas]
            calls = [call(samples) for samples in mine]
            latents = pipeline.denoise(calls + calls[-1:] * (pipeline.replicas - len(mine)), plan)
            yield mine, latents, pipeline.pixels(latents)

    with ThreadPoolExecutor(1, "pictures") as writer:
        written: Future[None] | None = None
        for this, _ in itertools.pairwise(itertools.chain(compute(), [None])):  # the next round has begun
            assert this is not None
            mine, latents, pixels = this
            check_finite(np.concatenate(jax.device_get(latents)))
            if written is not None:
                written.result()
            written = writer.submit(write, mine, jax.device_get(pixels))
        if written is not None:
            written.result()


def recorded_batch(out: Path) -> int | None:
    """The batch of the run that a folder holds, if it holds one."""
    record = out / "generation.json"
    batch = _read_record(record).get("batch") if record.is_file() else None
    return batch if isinstance(batch, int) else None


def _done(out: Path, settings: dict[str, Any], conditions: Sequence[str | int], resume: bool) -> set[int]:
    """The indices of a folder, if it is there, that are done already. Raises ValueError for one that holds
    another run.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose a folder for the pictures.")
    record = out / "generation.json"
    if not record.is_file():
        files = out.iterdir() if out.exists() else ()
        held = sorted(p.name for p in files if p.suffix == ".png" or p.name == LIST)
        if held:
            raise ValueError(
                f"{out} holds {held[0]}, but no generation.json; choose another folder for new pictures."
            )
        return set()
    if not resume:
        raise ValueError(f"{out} holds a generation already; choose another folder, or resume it.")
    old = _read_record(record)
    differs = [key for key in settings if json.loads(json.dumps(settings[key])) != old.get(key)]
    if differs:
        plain = [f"{key} {old.get(key)!r}, not {settings[key]!r}" for key in differs if _brief(settings[key])]
        told = f" ({'; '.join(plain)})" if plain else ""
        raise ValueError(
            f"{out} was made with another {', '.join(differs)}{told}; choose another folder for these"
            " settings."
        )
    done: set[int] = set()
    for entry in _listed(out):
        index = entry["index"]
        if index >= len(conditions) or conditions[index] != entry["condition"]:
            raise ValueError(
                f"{out} has {entry['condition']!r} as sample {index}, which this run has not; "
                f"use another folder."
            )
        if _content(out, entry) is None:
            raise ValueError(
                f"{out / entry['file']} is listed in the manifest, but is missing or altered; "
                f"delete {out} and run again."
            )
        done.add(index)
    return done


def _brief(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= 40)


def _content(folder: Path, entry: dict[str, Any]) -> bytes | None:
    """The file that an entry lists, or None if it is missing or altered."""
    file = folder / entry["file"]
    content = file.read_bytes() if file.is_file() else b""
    return content if hashlib.sha256(content).hexdigest() == entry["sha256"] else None


def _record(out: Path, settings: dict[str, Any]) -> None:
    """Write down what all pictures share, once the first are there: a refused run leaves no folder behind."""
    file = out / "generation.json"
    if not file.is_file():
        write_json(file, {**settings, "versions": versions()})


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The entries of all manifests, by index; a line that a killed run left unfinished does not count."""
    found: dict[int, dict[str, Any]] = {}
    for file in (*_parts(folder), folder / LIST):  # parts vanish once they are joined, so they are read first
        with contextlib.suppress(FileNotFoundError):
            entries = [_entry(line, f"{file} line {i}") for i, line in enumerate(whole_lines(file), 1)]
            own: set[int] = set()
            for entry in entries:
                index = entry["index"]
                if index in own or found.setdefault(index, entry) != entry:
                    raise ValueError(
                        f"{file} lists sample {index} twice; delete the folder and generate it again."
                    )
                own.add(index)
    return [found[index] for index in sorted(found)]


def _parts(folder: Path) -> list[Path]:
    """Manifests of runs that were shared by several processes."""
    return sorted(folder.glob("manifest-*-of-*.jsonl"))


def _join(manifest: Manifest) -> None:
    """One manifest, in the order of the conditions. Whoever else joins writes the same."""
    text = "".join(json.dumps(entry) + "\n" for entry in manifest.entries).encode()
    file = manifest.folder / LIST
    if not file.is_file() or file.read_bytes() != text:
        write_atomic(file, text)
    for part in _parts(manifest.folder):
        part.unlink(missing_ok=True)


def _entry(line: str, where: str) -> dict[str, Any]:
    """A line of a manifest. Raises ValueError if it is none, or leads out of its folder."""
    try:
        entry: dict[str, Any] = json.loads(line)
        names = [entry["file"], *([entry["video"]] if "video" in entry else ())]
        plain = all(name == Path(name).name and name.isprintable() for name in names)
        index, frames = entry["index"], entry.get("frames", 1)
        whole = type(index) is type(frames) is int and index >= 0 and frames >= 1
        told = type(entry["condition"]) in (str, int) and type(entry["sha256"]) is str
        if plain and whole and told and ("video" in entry) == ("frames" in entry):
            return entry
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{where} is damaged: {line[:80]!r}; delete the folder and generate it again.")


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete the folder and generate it again.") from error
    if not isinstance(record, dict):
        raise ValueError(f"{file} holds no settings; delete the folder and generate it again.")
    return record


def _write(
    listed: Path, index: int, condition: str | int, seed: int, sample: np.ndarray, fps: float | None
) -> None:
    entry: dict[str, Any] = {"index": index, "condition": condition, "seed": seed, "file": f"{index:05d}.png"}
    picture = sample
    if sample.ndim == 4:
        picture, entry["frames"], entry["video"] = strip(sample), len(sample), f"{index:05d}.mp4"
    content = png(Image.fromarray(picture))
    write_atomic(listed.parent / entry["file"], content)
    if fps is not None:
        write_mp4(sample, listed.parent / entry["video"], fps=fps)
    append_line(listed, json.dumps({**entry, "sha256": hashlib.sha256(content).hexdigest()}))
