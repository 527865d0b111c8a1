"""Checkpoints as lazy mappings of names to tensors: one file, shards with an index, or a folder."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from converters.safetensors_file import open_safetensors
from converters.tensor import SourceError, Tensor
from converters.torch_file import open_torch

Tensors = Mapping[str, Tensor]

# A training checkpoint holds several sets of weights; the first of these names wins. The smoothed weights of
# PixArt ("state_dict_ema") are not what its authors publish, so they come last.
WRAPPERS = ("ema", "state_dict", "model", "module", "state_dict_ema")
GENERIC_PREFIXES = ("module.", "base_model.", "model.", "_orig_mod.")
PART_PREFIXES = (
    "model.diffusion_model.",
    "first_stage_model.",
)  # a whole pipeline in one file: keep one part
_WEIGHT_NAMES = (  # in the order of preference; half-precision variants come after the full ones
    r".*\.safetensors\.index\.json",
    r"(diffusion_pytorch_model|model)\.safetensors",
    r".*\.bin\.index\.json",
    r"(diffusion_pytorch_model|pytorch_model)\.bin",
    r".*\.index\.[a-z0-9]+\.json",
    r".*\.(fp16|bf16)\.safetensors",
    r".*\.(fp16|bf16)\.bin",
    r".*\.safetensors",
    r".*\.(bin|pt|pth|ckpt)",
)
_RESAVE = "Save model.state_dict() with the program that wrote it."


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint: its tensors, the config.json beside them (or None), and the file that was opened."""

    tensors: Tensors
    config: dict[str, Any] | None
    file: Path


def open_source(path: str | Path, *, wrapper: str | None = None) -> Source:
    """Open a checkpoint without reading its tensors.

    path: a .safetensors file; a file of torch.save; an index of shards (*.index.json); or a folder with one
    of them,
        with a config.json or without.
    wrapper: which set of weights of a training checkpoint to take ("state_dict_ema"); the first of WRAPPERS
    if None.
    Raises SourceError, which says what is wrong and what to do.
    """
    path = Path(path)
    if path.is_dir():
        config = path / "config.json"
        opened = open_source(_weights_of(path), wrapper=wrapper)
        return dataclasses.replace(opened, config=read_json(config) if config.is_file() else None)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*"))[:8] if path.parent.is_dir() else []
        raise SourceError(f"{path} does not exist; {path.parent} holds {', '.join(near) or 'nothing'}.")
    return Source(strip_prefixes(_open_file(path, wrapper)), None, path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}); name a JSON file.") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON ({error}). Copy or download it again.") from error
    if not isinstance(found, dict):
        raise SourceError(
            f"{path} holds a JSON {type(found).__name__}, not an object. Copy or download it again."
        )
    return found


def _weights_of(folder: Path) -> Path:
    """The weights file of a folder; the most precise and complete one if there are several."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    for pattern in _WEIGHT_NAMES:
        found = [name for name in names if re.fullmatch(pattern, name)]
        if len(found) > 1:
            raise SourceError(
                f"{folder} has several sets of weights: {', '.join(found)}. Name the file itself."
            )
        if found:
            return folder / found[0]
    held = ", ".join(names[:8]) or "no file"
    raise SourceError(
        f"{folder} has no weights (*.safetensors, *.bin, *.pt, *.pth); it holds {held}. "
        "Name a file with weights."
    )


def _open_file(path: Path, wrapper: str | None = None) -> Tensors:
    plain = path.name.endswith(".json") or path.suffix == ".safetensors"
    if plain and wrapper is not None:
        raise SourceError(
            f"{path} holds one set of weights, so there is no {wrapper!r} to choose; leave it out, or name a "
            "training checkpoint of torch.save."
        )
    if path.name.endswith(".json"):
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    return _unwrap(open_torch(path), path, wrapper)


def _open_shards(index: Path) -> Tensors:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(
            f"{index} has no weight_map (name -> shard); it is not an index of shards. "
            "Name a file with weights."
        )
    shards = sorted({str(shard) for shard in weight_map.values()})
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise SourceError(f"{index} names {', '.join(outside)}: refused; shards lie beside their index.")
    indices = [shard for shard in shards if shard.endswith(".json")]
    if indices:
        raise SourceError(
            f"{index} names {', '.join(indices)} as a shard, which is no weights file. Download it again."
        )
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise SourceError(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} shards that {index.name} names: "
            f"{', '.join(missing)}. Download them too."
        )
    opened = {shard: _open_file(index.parent / shard) for shard in shards}
    lost = [name for name, shard in weight_map.items() if name not in opened[shard]]
    if lost:
        shown = ", ".join(f"{name} in {weight_map[name]}" for name in lost[:8])
        raise SourceError(
            f"{index.name} names {len(lost)} tensors that are not there: {shown}. "
            "Download index and shards again."
        )
    return {name: opened[shard][name] for name, shard in weight_map.items()}


def _unwrap(found: Any, path: Path, wrapper: str | None) -> Tensors:
    """The state dict inside a training checkpoint."""
    if isinstance(found, dict) and wrapper is not None:
        if not isinstance(wrapper, str):
            raise SourceError(f"weights={wrapper!r} is not the name of a set of weights, such as 'ema'.")
        if not isinstance(found.get(wrapper), dict):
            held = ", ".join(str(key) for key, value in found.items() if isinstance(value, dict)) or "none"
            raise SourceError(
                f"{path} has no weights {wrapper!r}; it holds: {held}. Name one of these, or leave it out."
            )
        found = found[wrapper]
    seen: list[Any] = []
    while isinstance(found, dict):
        if any(found is each for each in seen):
            raise SourceError(f"{path} holds a dict that contains itself, and no state dict. {_RESAVE}")
        seen.append(found)
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), dict)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, dict) or not any(isinstance(value, Tensor) for value in found.values()):
        kind = f"a {type(found).__name__}" + (
            f" of {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else ""
        )
        raise SourceError(f"{path} holds {kind}, and no state dict. {_RESAVE}")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def strip_prefixes(tensors: Tensors) -> Tensors:
    """Without the prefixes that wrappers of a model put before every name."""
    stripped = dict(tensors)
    while stripped:
        prefix = next((p for p in GENERIC_PREFIXES if _all_carry(stripped, p)), None)
        if prefix is None:
            return stripped
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def _all_carry(tensors: Tensors, prefix: str) -> bool:
    parts = any(name.startswith(PART_PREFIXES) for name in tensors)
    return not parts and all(name.startswith(prefix) for name in tensors)


def views(tensors: Tensors) -> Iterator[Tensors]:
    """The tensors themselves, then each part of a pipeline that was saved as one file."""
    yield tensors
    for prefix in PART_PREFIXES:
        part = {
            name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)
        }
        if part:
            yield part
