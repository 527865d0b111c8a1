"""All that reads what strangers write, as functions of bytes, for fuzzing; and honest inputs for each."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from converters.safetensors_file import open_safetensors
from converters.sources import open_source
from tests.hostile import records, texts, torch_files
from tests.hostile.torch_files import REBUILD, archive, legacy, name, program, storage, text
from viditq_jax.calibrate import load_stats
from viditq_jax.conditions import prompts_in
from viditq_jax.generate import Manifest
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.search.table import Table

TENSOR = REBUILD + b"(" + storage() + b"K\0K\2K\2\x86K\2K\1\x86\x89NtR"


def _safetensors(file: Path) -> Any:
    return [tensor.read() for tensor in open_safetensors(file).values()]


def _torch(file: Path) -> Any:
    return [tensor.read() for tensor in open_source(file).tensors.values()]


def _pickle(file: Path) -> Any:
    archive(file.read_bytes())(file.parent)
    return _torch(file.parent / "x.pth")


def _recipe(file: Path) -> Any:
    return load_recipe(file).resolve(texts.SHAPES)


def _manifest(file: Path) -> Any:
    data = file.read_bytes()
    records.manifest()(file.parent)
    file.write_bytes(data)
    return Manifest.read(file.parent).images()


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {  # the name of the file, and what reads it
    "safetensors": ("x.safetensors", _safetensors),
    "torch archive": ("x.pth", _torch),
    "torch legacy": ("x.pth", _torch),
    "pickle": ("data.pkl", _pickle),
    "recipe": ("r.json", _recipe),
    "prompts": ("p.txt", prompts_in),
    "manifest": ("manifest.jsonl", _manifest),
    "table": ("t.jsonl", Table.read),
    "statistics": ("s.safetensors", load_stats),
}


def read(reader: str, data: bytes) -> Any:
    """What the reader makes of the bytes, or the ValueError or OSError by which it refuses them."""
    file, function = READERS[reader]
    with TemporaryDirectory() as folder:
        (Path(folder) / file).write_bytes(data)
        try:
            return function(Path(folder) / file)
        except (ValueError, OSError) as error:
            return error


@cache
def honest(reader: str) -> tuple[bytes, ...]:
    """Inputs that the reader accepts."""
    weights = program(b"}", text("w"), TENSOR, b"s")
    makers: dict[str, list[Callable[[Path], Any]]] = {
        "safetensors": [
            lambda folder: save_file({"a": np.ones((2, 3), np.float32)}, folder / "x.safetensors")
        ],
        "torch archive": [archive(weights)],
        "torch legacy": [
            legacy(
                torch_files.MAGIC,
                torch_files.VERSION,
                {"little_endian": True, "type_sizes": {"int": 4}},
                weights,
                ["0"],
                (4).to_bytes(8, "little") + bytes(16),
            )
        ],
        "pickle": [
            lambda folder: (folder / "data.pkl").write_bytes(weights),
            lambda folder: (folder / "data.pkl").write_bytes(
                program(b"}(", text("w"), TENSOR, text("set"), name("builtins", "set"), b"(]K\1atR", b"u")
            ),
        ],
        "recipe": [
            texts.recipe(),
            texts.recipe(
                {"match": ["*/fc1", "head"], "weight": "int4/group32/asym", "act": "int8/token", "why": ""}
            ),
        ],
        "prompts": [lambda folder: (folder / "p.txt").write_text("a red apple\n\ntwo dogs\n")],
        "manifest": [records.manifest()],
        "table": [records.rows(records.ROW)],
        "statistics": [
            lambda folder: (records.stats()(folder), (folder / "s").rename(folder / "s.safetensors"))
        ],
    }
    found = []
    for make in makers[reader]:
        with TemporaryDirectory() as folder:
            make(Path(folder))
            found.append((Path(folder) / READERS[reader][0]).read_bytes())
    return tuple(found)
