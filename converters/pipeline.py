"""A foreign checkpoint, or a folder of them, to an `Artifact`.

Every part is opened, recognized and planned before any tensor is read, so that an error costs no time; the
tensors of a part are read when its Net is asked for.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from converters import families, rules
from converters.scheduler import read_scheduler
from converters.sources import Source, Tensors, open_source, read_json
from converters.tensor import ConversionError
from viditq_jax import plugins
from viditq_jax.checkpoint import Artifact
from viditq_jax.net import Net, abstract

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"  # of a diffusers pipeline
# Where a scheduler_config.json names another sampler than the model's own.
STEPS = {"ddim": 50, "iddpm": 100, "dpm_solver": 20, "flow_euler": 28}
_TOKENIZERS = ("spiece.model", "tokenizer.json")
_LATENT_FACTOR = 8  # pixels of a latent pixel, where the autoencoder is not given


@dataclasses.dataclass(frozen=True)
class Part:
    """A model of a pipeline, recognized and planned but not read."""

    model: str
    format: str
    config: Any
    tensors: Tensors
    file: Path
    target: Net  # abstract

    def load(self, dtype: Any) -> Net:
        """Read the tensors."""
        return rules.convert(self.target, self.tensors, self.table(), dtype)

    def table(self) -> rules.Table:
        """The names of its parameters in the checkpoint."""
        table: rules.Table = families.find(self.model).FORMATS[self.format](self.config)
        return table


def convert(
    source: str | Path,
    *,
    dtype: Any = jnp.bfloat16,
    model: str | None = None,
    text_encoder: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    scheduler: str | Path | Mapping[str, Any] | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
) -> Artifact:
    """The artifact of a foreign checkpoint, ready to be saved; tensors are read when its Nets are asked for.

    source: a diffusers pipeline folder, or one denoiser: a file of torch.save, .safetensors, an index of
        shards, or a folder with one of these. The index of a pipeline may name the folder of a part ("vae":
        "../default/vae") and its "guidance".
    dtype: of all parameters, bfloat16 or float32.
    model: the named config of the denoiser, such as "pixart-sigma-xl-2-1024-ms", where the checkpoint does
        not tell it.
    text_encoder, vae, tokenizer, scheduler: the other parts, or those that replace the folder's; without a
        vae or a text encoder the pipeline ends at latents or begins at text features.
    config: a diffusers config.json of the denoiser, or its content, which goes over the one beside the file.
        It may also hold fields of our Config, and as "weights" the set of a training checkpoint to take
        ("state_dict_ema").
    Raises ConversionError, which lists all that is wrong with a part, before any tensor is read.
    """
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.bfloat16, jnp.float32):
        raise ConversionError(f"dtype {dtype.name} is not possible; store parameters as bfloat16 or float32.")
    given: dict[str, Any] = {
        "text_encoder": text_encoder,
        "vae": vae,
        "tokenizer": tokenizer,
        "scheduler": scheduler,
    }
    overrides = dict(read_json(Path(config)) if isinstance(config, (str, Path)) else config or {})
    index: dict[str, Any] = {}
    if (folder := Path(source)).joinpath(INDEX).is_file():
        index = read_json(folder / INDEX)
        given = {name: _else_folder(value, _place(folder, index, name)) for name, value in given.items()}
        source = _place(folder, index, "transformer")

    denoiser = _denoiser(open_source(source, wrapper=overrides.pop("weights", None)), overrides, model, index)
    parts, files = {"denoiser": denoiser}, {}
    facts = families.find(denoiser.model).defaults(denoiser.config, denoiser.format)
    facts["guidance"] |= index.get("guidance", {})
    if facts["conditions"]["kind"] == "label":
        facts["conditions"]["id2label"] = index.get("id2label")
    if given["vae"] is not None:
        parts["decoder"] = _decoder(Path(given["vae"]), denoiser)
    if given["text_encoder"] is not None or given["tokenizer"] is not None:
        parts["text_encoder"], file = _text_encoder(
            given["text_encoder"], given["tokenizer"], denoiser, facts
        )
        files[f"tokenizer/{file.name}"] = file.read_bytes()
        length = _caption_length(file, denoiser.config.text_length)
        facts["tokenizer"] = {"file": f"tokenizer/{file.name}", "max_length": length}
    if given["scheduler"] is not None:
        facts["sampler"] = _sampler(given["scheduler"], facts["sampler"])
    factor = parts["decoder"].config.downsampling if "decoder" in parts else _LATENT_FACTOR
    facts["image_size"] = [denoiser.config.input_size * factor] * 2
    if (frames := getattr(denoiser.config, "frames", None)) is not None:
        facts["frames"] = frames
    facts["dtype"] = dtype.name
    facts["source"] = {name: {"format": part.format, "file": part.file.name} for name, part in parts.items()}
    facts |= {
        name: {"model": part.model, "config": dataclasses.asdict(part.config)} for name, part in parts.items()
    }
    return Artifact(facts, {name: partial(part.load, dtype) for name, part in parts.items()}, files)


def _place(folder: Path, index: Mapping[str, Any], name: str) -> Path:
    """The folder of a part: of its name, as in diffusers, or, where the index names another, that one."""
    if not isinstance(named := index.get(name), str):
        return folder / name
    if not (folder / named).is_dir():
        raise ConversionError(f"{folder / INDEX} names {named} as its {name}; there is no such folder.")
    return folder / named


def _else_folder(value: Any, folder: Path) -> Any:
    """What the caller gave, or else the folder, or else nothing."""
    return value if value is not None or not folder.exists() else folder


def _plan(source: Source, part: str, overrides: Mapping[str, Any], name: str | None = None) -> Part:
    """Recognize a checkpoint, read its config, and check that every parameter is there."""
    model, format, tensors = families.recognize(source, part)
    family = families.find(model)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    given = {**(source.config or {}), **overrides} if source.config or overrides else None
    try:
        named = None if name is None else _named(name, model)
        config = family.read_config(shapes, format, given, named)
        target = abstract(plugins.find("viditq_jax.models", model, "build"), config)
        planned = Part(model, format, config, tensors, source.file, target)
        rules.plan(target, tensors, planned.table())
    except (
        ValueError,
        ArithmeticError,
        LookupError,
        TypeError,
    ) as error:  # also of a model that cannot have this config
        raise ConversionError(f"{source.file} ({family.TITLE}, {format} format): {error}") from error
    return planned


def _denoiser(
    source: Source, overrides: Mapping[str, Any], model: str | None, index: Mapping[str, Any]
) -> Part:
    """The denoiser; a published file name stands for its named config where nothing else is said."""
    known = families.members("denoiser")
    if model is None and source.config is None and not overrides:
        names = {stem: name for family in known.values() for stem, name in family.PUBLISHED.items()}
        model = names.get(source.file.name.removesuffix(source.file.suffix))
    pipelines = {name: facts for family in known.values() for name, facts in family.PIPELINES.items()}
    implied = pipelines.get(str(index.get("_class_name")), {})
    if implied:
        source = dataclasses.replace(source, config={**implied, **(source.config or {})})
    return _plan(source, "denoiser", overrides, model)


def _named(name: str, model: str) -> Any:
    """The config that `model` has under a name such as "dit-xl-2-256"."""
    known = plugins.find("viditq_jax.models", model, "CONFIGS")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise ConversionError(f"this family has no model {name!r}; did you mean {', '.join(near)}?")
    return known[name]


def _decoder(path: Path, denoiser: Part) -> Part:
    family = families.find(denoiser.model)
    if reason := family.without_decoder(denoiser.config) if hasattr(family, "without_decoder") else "":
        raise ConversionError(f"{denoiser.file}: {reason}.")
    source = open_source(path)
    scale = family.latent_scale(denoiser.config)
    decoder = _plan(source, "decoder", {} if source.config else {"scaling_factor": scale})
    if decoder.config.latent_channels != denoiser.config.in_channels:
        raise ConversionError(
            f"{decoder.file} makes latents of {decoder.config.latent_channels} channels, "
            f"but the denoiser takes {denoiser.config.in_channels}; "
            f"give the autoencoder that it was trained with."
        )
    return decoder


def _text_encoder(path: Any, tokenizer: Any, denoiser: Part, facts: Mapping[str, Any]) -> tuple[Part, Path]:
    """The text encoder and the file of its tokenizer, which may lie in the encoder's folder."""
    if facts["conditions"]["kind"] != "prompt":
        raise ConversionError(f"{denoiser.file} takes class labels; leave text_encoder and tokenizer out.")
    if path is None:
        raise ConversionError(f"the tokenizer {tokenizer} needs its text encoder; give text_encoder too.")
    file = Path(path if tokenizer is None else tokenizer)
    if file.is_dir():
        found = next((file / name for name in _TOKENIZERS if (file / name).is_file()), None)
        if found is None:
            raise ConversionError(f"{file} has no {' or '.join(_TOKENIZERS)}; give one of them as tokenizer.")
        file = found
    elif (file.name not in _TOKENIZERS and file.suffix not in (".model", ".json")) or not file.is_file():
        raise ConversionError(
            f"{file} is not a tokenizer file; give {' or '.join(_TOKENIZERS)} as tokenizer."
        )
    encoder = _plan(open_source(path), "text_encoder", {})
    if encoder.config.d_model != denoiser.config.caption_channels:
        raise ConversionError(
            f"{encoder.file} makes text features of {encoder.config.d_model} channels, "
            f"but the denoiser takes {denoiser.config.caption_channels}; "
            f"give the text encoder that it was trained with."
        )
    return encoder, file


def _caption_length(tokenizer: Path, length: int) -> int:
    """The model's caption length, or less where the tokenizer_config.json beside the tokenizer says so."""
    config = tokenizer.parent / "tokenizer_config.json"
    limit = read_json(config).get("model_max_length") if config.is_file() else None
    return min(length, limit) if type(limit) is int and limit > 0 else length


def _sampler(scheduler: Any, default: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler of a scheduler_config.json, with the model's own steps if it is the model's own sampler."""
    if not isinstance(scheduler, Mapping):
        path = Path(scheduler)
        scheduler = read_json(path / SCHEDULER if path.is_dir() else path)
    found = read_scheduler(scheduler)
    own = found["name"] == default["name"]
    return {**found, "steps": default["steps"] if own else STEPS[found["name"]]}
