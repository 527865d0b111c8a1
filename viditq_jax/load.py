"""Pipelines from disk: an artifact, a foreign checkpoint, the packaged models."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from viditq_jax import checkpoint, plugins, replicas
from viditq_jax.net import Net, abstract
from viditq_jax.pipeline import PARTS, Pipeline
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.check import faults
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.sharing import shared
from viditq_jax.speed import warn_if_slower

PACKAGED = ("default", "default-video")
_MOST_TOKENS, _LARGEST = 1 << 14, 1 << 14  # of a prompt; side of a latent, or frames
_REPEATED = ("depth", "num_layers", "layers_per_block")  # fields that say how many parts a model is made of


@contextmanager
def packaged_model(name: str) -> Iterator[Path]:
    """The folder of a packaged model's checkpoint. Raises FileNotFoundError if it was left out."""
    with resources.as_file(resources.files("viditq_jax.assets")) as folder:
        if not (folder / name / "model_index.json").is_file():
            raise FileNotFoundError(
                f"the model {name!r} is not in this installation ({folder / name}); install viditq-jax with "
                f"its packaged data, or make it by examples/train_{name.replace('-', '_')}.py."
            )
        yield folder / name


def load_pipeline(path: str | Path = "default", *, dtype: Any = None, mesh: Mesh | None = None) -> Pipeline:
    """A pipeline from an artifact folder, from a foreign checkpoint, or a packaged model.

    Packaged are "default", which makes pictures, and "default-video".

    path: what `viditq convert` or `Pipeline.save` wrote; or a diffusers pipeline folder or a checkpoint file,
        which is converted in memory. dtype: of the unquantized parameters; as stored in an artifact, and
        bfloat16 for a foreign checkpoint, where not given. mesh: devices of `replica_mesh` that sampling runs
        on; the arrays of an artifact go straight to where they belong, and never to one device as a whole.
    Warns, see `speed`, of quantized layers that were measured to be slower than in floats on this device.
    Raises ArtifactError or ConversionError, with all that is wrong, before anything is built.
    """
    if str(path) in PACKAGED:
        with packaged_model(str(path)) as folder:
            return _convert(folder, dtype, mesh)
    if not Path(path).exists():
        raise FileNotFoundError(
            f"{path} does not exist; give an artifact, a checkpoint, or one of {', '.join(PACKAGED)}."
        )
    if not (Path(path) / checkpoint.FACTS_FILE).is_file():
        return _convert(Path(path), dtype, mesh)
    facts = checkpoint.read_facts(path)
    file = Path(path) / checkpoint.FACTS_FILE
    if "denoiser" not in facts:
        raise checkpoint.ArtifactError(f"{file} names no denoiser; make the artifact again from its source.")
    try:
        targets = {name: _target(name, facts) for name in PARTS if name in facts}
        _check(Pipeline(targets["denoiser"], facts))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise checkpoint.ArtifactError(
            f"{file} does not describe a pipeline ({type(error).__name__}: {' '.join(str(error).split())}); "
            "make the artifact again from its source."
        ) from error
    nets = {name: _restored(path, name, target, mesh) for name, target in targets.items()}
    if wrong := faults(nets["denoiser"]):
        raise checkpoint.ArtifactError(
            f"{path} holds scales that quantization does not make: {'; '.join(wrong[:5])}"
            f"{' ...' if len(wrong) > 5 else ''}. Make the artifact again from its source."
        )
    files = {
        name: (Path(path) / name).read_bytes() for name in facts["files"] if name.split("/")[0] not in PARTS
    }
    pipeline = Pipeline(
        facts={
            key: value for key, value in facts.items() if key not in ("format", "files", "versions", "recipe")
        },
        recipe=_recipe(facts),
        files=files,
        mesh=mesh,
        **nets,
    )
    pipeline = pipeline if dtype is None else pipeline.astype(dtype)
    warn_if_slower(pipeline)
    return pipeline


def describe(path: str | Path, recipe: Recipe | None = None) -> Pipeline:
    """The pipeline that `load_pipeline` would give, of shapes alone: its facts are read, and no weight.

    recipe: as if it were quantized so. Raises ValueError for a recipe on what is quantized already, and as
    `load_pipeline` does.
    """
    if str(path) in PACKAGED:
        with packaged_model(str(path)) as folder:
            facts = _conversion(folder).facts
    elif (Path(path) / checkpoint.FACTS_FILE).is_file():
        facts = checkpoint.read_facts(path)
    else:
        facts = _conversion(Path(path)).facts
    if (held := _recipe(facts)) and recipe:
        raise ValueError(f"{path} is quantized already, to {held.name}; leave the recipe out.")
    dtype = jnp.dtype(facts["dtype"])
    nets: dict[str, Any] = {name: abstract_net(facts, name).astype(dtype) for name in PARTS if name in facts}
    if chosen := held or recipe:
        nets["denoiser"] = quantize(nets["denoiser"], chosen)
    return Pipeline(facts=dict(facts), recipe=chosen, **nets)


def _restored(path: str | Path, name: str, target: Net, mesh: Mesh | None) -> Net:
    if mesh is None or name == "text_encoder":
        return checkpoint.restore(path, name, target)
    replicas.check(mesh)
    target = shared(target, mesh.shape["model"])
    return checkpoint.restore(path, name, target, replicas.shardings(target, mesh))


def _check(described: Pipeline) -> None:
    """Raise, as Python does, if a fact that is read later is missing or impossible."""
    facts = described.facts
    described.sampler.table(described.steps)
    if not math.isfinite(described.guidance.scale):
        raise ValueError(f"a guidance scale of {described.guidance.scale}")
    if max(described.latent_shape()) > _LARGEST:
        raise ValueError(f"samples of {described.latent_shape()} numbers")
    _ = described.correction(described.plan())
    if not all(isinstance(layer, dict) for layer in dict(facts.get("layers", {})).values()):
        raise ValueError("the records of its layers are no records")
    if facts["denoiser"]["config"].get("micro_conditions"):
        _ = facts["source"]["denoiser"]["format"]
    if facts["conditions"]["kind"] == "label":
        int(facts["conditions"]["classes"])
    if "frames" in facts:
        _ = float(facts["fps"])
    if "tokenizer" in facts:
        name, length = facts["tokenizer"]["file"], facts["tokenizer"]["max_length"]
        if name not in facts["files"] or type(length) is not int or not 1 <= length <= _MOST_TOKENS:
            raise ValueError(f"tokenizer {name!r} of {length!r} tokens is none of its files")


def _recipe(facts: dict[str, Any]) -> Recipe | None:
    return Recipe.from_json(facts["recipe"]) if facts.get("recipe") else None


def _target(name: str, facts: dict[str, Any]) -> Net:
    """The abstract Net of the facts, abstractly quantized, which an artifact is restored into."""
    target = abstract_net(facts, name).astype(jnp.dtype(facts["dtype"]))
    recipe = _recipe(facts) if name == "denoiser" else None
    if recipe is not None:
        target = quantize(target, recipe)
    return target


def abstract_net(facts: dict[str, Any], name: str) -> Net:
    """The shapes of the model that the facts describe, in float32.

    Raises ValueError for more layers than the artifact has files: they would be built one by one.
    """
    files = sum(file.startswith(f"{name}/") for file in facts["files"]) if "files" in facts else math.inf
    for field in _REPEATED:
        if (count := facts[name]["config"].get(field, 0)) > files:
            raise ValueError(f"{name} has {field} {count!r}, and {files} files to hold it")
    module = plugins.find("viditq_jax.models", facts[name]["model"])
    return abstract(module.build, config_from_json(module.Config, facts[name]["config"]))


def config_from_json(kind: type, values: Mapping[str, Any]) -> Any:
    """A model's Config from JSON values; lists become tuples. Raises ValueError for unknown or missing
    fields.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(values.keys() - fields.keys())
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    if unknown or missing:
        raise ValueError(f"{kind.__module__}: config has unknown fields {unknown} and lacks {missing}.")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _conversion(path: Path, dtype: Any = None) -> checkpoint.Artifact:
    from converters import convert

    return convert(path, dtype=jnp.bfloat16 if dtype is None else dtype)


def _convert(path: Path, dtype: Any, mesh: Mesh | None) -> Pipeline:
    pipeline = from_artifact(_conversion(path, dtype))
    return pipeline if mesh is None else pipeline.on(mesh)


def from_artifact(artifact: checkpoint.Artifact) -> Pipeline:
    """Build the pipeline that a conversion describes, without writing it."""
    nets: dict[str, Any] = {name: load() for name, load in artifact.nets.items()}
    return Pipeline(facts=dict(artifact.facts), files=dict(artifact.files), **nets)
