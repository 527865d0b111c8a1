"""Reading a run folder: `metrics.json`, and one folder of pictures a variant.

    {"model", "prompts", "seed", "steps", "sampler", "guidance", "device", "date", "versions",
     "noise_floor": {"psnr_db", "ssim"}, or one of these for each model,
     "variants": {name: {"pictures", "psnr_db", "ssim", "weight_bytes", "bfloat16_weight_bytes",
                         "seconds_per_image", "recipe"}}}

A variant may also say its "model" and "label" (a run with the same recipes on several models),
"latent_rel_l2", "artifact_bytes", "drift" {"t", "relative_l2", "cosine"}, each a list over the steps, and
"layers" {path: {"sqnr_db", "incoherence"}}; of videos "fps" and temporal measures. What is absent is not
drawn. "quality" is what `viditq_jax.quality.measure` gives, with "pictures" (a variant), "reference" and
"baseline". A run of pictures may have one video beside them:

    "video": {"condition", "fps", "variants": {label: {"pictures", "psnr_db", temporal measures}}}
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from viditq_jax.files import whole_lines
from viditq_jax.video import frames_of_strip, read_picture


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report shows: the records, and each variant's samples in the order of the conditions.

    pictures: [h, w, 3] each; of videos [t, h, w, 3]. video: the one beside pictures, by label of the variant.
    """

    records: dict[str, Any]
    conditions: list[str]
    pictures: dict[str, list[np.ndarray]]
    video: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def fps(self) -> float | None:
        """Frames a second of videos; None of pictures."""
        return next(iter(self.records["variants"].values())).get("fps")

    def still(self, variant: str, i: int) -> np.ndarray:
        """A picture, [h, w, 3]: of a video the frame in its middle."""
        sample = self.pictures[variant][i]
        return sample[len(sample) // 2] if sample.ndim == 4 else sample

    @property
    def models(self) -> dict[str, dict[str, str]]:
        """For each model the variants, by their label; the model is "" in a run of one."""
        found: dict[str, dict[str, str]] = {}
        for name, record in self.records["variants"].items():
            found.setdefault(record.get("model", ""), {})[record.get("label", name)] = name
        return found

    def noise_floor(self, model: str) -> dict[str, Any]:
        """What rounding alone changes, on this model."""
        floor: dict[str, Any] = self.records.get("noise_floor", {})
        return floor.get(model, {}) if model and "psnr_db" not in floor else floor

    def drifts(self, model: str) -> dict[str, dict[str, list[float]]]:
        """The drift of each variant of a model that has one, by label."""
        records = {label: self.records["variants"][name] for label, name in self.models[model].items()}
        return {label: record["drift"] for label, record in records.items() if record.get("drift")}

    def layers(self, model: str) -> dict[str, dict[str, dict[str, float]]]:
        """What was measured of the layers of each variant of a model that has it, by label."""
        records = {label: self.records["variants"][name] for label, name in self.models[model].items()}
        return {label: record["layers"] for label, record in records.items() if record.get("layers")}


def read_run(folder: str | Path) -> Run:
    """Read a run folder. Raises ValueError that names what is missing."""
    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise ValueError(
            f"{folder} has no metrics.json; give a run folder, such as the one that `make demo` or "
            f"`viditq evaluate --recipes all` writes."
        )
    try:
        return _read(folder)
    except (
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise ValueError(
            f"{folder} is damaged ({type(error).__name__}: {error}); make the run again."
        ) from error


def _read(folder: Path) -> Run:
    records = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    pictures: dict[str, list[np.ndarray]] = {}
    conditions: list[str] = []
    for variant, record in records["variants"].items():
        place = _within(folder, record["pictures"])
        conditions = [str(entry["condition"]) for entry in _entries(place, variant)]
        pictures[variant] = _samples(place, variant)
    counts = {variant: len(each) for variant, each in pictures.items()}
    if not conditions or set(counts.values()) != {len(conditions)}:
        raise ValueError(f"{folder}: variants need the same pictures, found {counts or 'no variant'}.")
    beside = records.get("video", {}).get("variants", {})
    video = {
        label: _samples(_within(folder, record["pictures"]), label)[0] for label, record in beside.items()
    }
    return Run(records, conditions, pictures, video)


def _entries(folder: Path, variant: str) -> list[dict[str, Any]]:
    """The manifest of a variant's folder, in the order of the conditions."""
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        raise ValueError(f"variant {variant!r} has no {manifest}; generate its pictures again.")
    return sorted(map(json.loads, whole_lines(manifest)), key=lambda entry: int(entry["index"]))


def _within(folder: Path, name: str) -> Path:
    """A file of the folder. A run of a stranger must not show the pictures of whoever reads its report."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} names {name!r}, which lies outside; refused. Make the run again.")
    return folder / name


def _samples(folder: Path, variant: str) -> list[np.ndarray]:
    return [_sample(folder, entry) for entry in _entries(folder, variant)]


def _sample(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    """The picture of an entry, or its frames, which the file holds side by side."""
    file = _within(folder, entry["file"])
    picture = read_picture(file.read_bytes(), file)
    return frames_of_strip(picture, entry["frames"]) if "frames" in entry else picture
