"""What the facts of a pipeline, the content of `pipeline.json`, say of its sampler and of its sizes.

A size is height and width in pixels. A video has as many frames as its latents: the autoencoders here know
single frames alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from viditq_jax import plugins
from viditq_jax.sampling.schedule import VPSchedule, latent_video_shift

Facts = Mapping[str, Any]
Size = tuple[int, int]

_VIDEO = "video"  # the shift of a flow that follows from size and frames
_PICTURE_FPS = 120.0  # what STDiT3 is told of a single frame


def image_size(facts: Facts) -> Size:
    """The default height and width."""
    height, width = facts["image_size"]
    return int(height), int(width)


def frames_of(facts: Facts, frames: int | None) -> int | None:
    """How many frames a sample has, the model's own number where not asked for; None of a picture.

    Raises ValueError for frames of a picture, and for fewer than one.
    """
    own = facts.get("frames")
    if own is None and frames is not None:
        raise ValueError(
            f"{facts['denoiser']['model']} makes pictures, not videos of {frames} frames; leave frames out."
        )
    if frames is not None and frames < 1:
        raise ValueError(f"frames is {frames}; a video has at least 1.")
    return None if own is None else int(own if frames is None else frames)


def latent_shape(facts: Facts, size: Size | None, frames: int | None) -> tuple[int, ...]:
    """Frames, of a video, then height, width and channels of the latent of a sample.

    Raises ValueError for sizes and frames that the model cannot have.
    """
    decoder = facts.get("decoder", {"config": {}})["config"]
    factor = 2 ** (len(decoder["block_out_channels"]) - 1) if decoder else 8
    config = facts["denoiser"]["config"]
    # A model that is told the clip fills up patches.
    step = factor * (1 if facts["conditions"].get("clip") else int(config["patch_size"]))
    height, width = size or image_size(facts)
    if height % step or width % step or height < step or width < step:
        raise ValueError(
            f"size {height}x{width} is impossible; height and width are multiples of {step} pixels."
        )
    plane = (height // factor, width // factor, int(config["in_channels"]))
    count = frames_of(facts, frames)
    return plane if count is None else (count, *plane)


def clip_values(facts: Facts, size: Size | None, frames: int | None) -> tuple[float, float, float]:
    """Frames a second, height and width, as STDiT3 is told them."""
    fps = _PICTURE_FPS if frames_of(facts, frames) == 1 else float(facts["fps"])
    height, width = size or image_size(facts)
    return fps, float(height), float(width)


def sampler(facts: Facts, size: Size | None, frames: int | None) -> Any:
    """The sampler with its options, for samples of this size; only a flow with the shift "video" minds it."""
    entry = facts["sampler"]
    options = dict(entry.get("options", {}))
    if options.get("shift") == _VIDEO:
        count = frames_of(facts, frames)
        if count is None:
            raise ValueError("the sampler's shift is of videos, and this model makes pictures.")
        options["shift"] = latent_video_shift(*(size or image_size(facts)), count)
    return plugins.find("viditq_jax.sampling", entry["name"], "SAMPLER")(**options)


def other_sampler(facts: Facts, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with another sampler, on the same noise schedule and for the same kind of prediction.

    What "samplings" tells of it, as the authors of the model use it, comes with it: options, steps, guidance.
    Raises ValueError for a sampler of another family, which cannot do what the model was trained for.
    """
    entry = facts["sampler"]
    kind = plugins.find("viditq_jax.sampling", name, "SAMPLER")
    model_facts = {*(field.name for field in dataclasses.fields(VPSchedule)), "prediction", "velocity"}
    known = {field.name for field in dataclasses.fields(kind)}
    shared = {k: v for k, v in entry.get("options", {}).items() if k in model_facts}
    lost = sorted(shared.keys() - known)
    if lost:
        raise ValueError(
            f"sampler {name!r} knows no {', '.join(lost)}, which this model was trained with; "
            f"choose a sampler of the same family as {entry['name']!r}."
        )
    if name == entry["name"]:
        shared = dict(entry.get("options", {}))
    told = facts.get("samplings", {}).get(name, {})
    changed = {
        **entry,
        "name": name,
        "steps": told.get("steps", entry["steps"]),
        "options": {**shared, **told.get("options", {}), **options},
    }
    return {**facts, "sampler": changed, "guidance": {**facts["guidance"], **told.get("guidance", {})}}
