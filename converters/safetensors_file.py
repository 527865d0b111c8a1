"""safetensors files: an 8-byte length, a JSON header that says where each tensor lies, then the bytes.

The header is checked here in full before anything is read, so that a damaged or hostile file is one clear
error.
"""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from converters.tensor import BFLOAT16, SourceError, Tensor
from viditq_jax.files import parse_json, writing

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_MOST_AXES = 64  # as NumPy has it
_AGAIN = "Copy or download it again."


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises SourceError if the file is truncated, its header is not valid, or its offsets leave the file,
    overlap, have holes, or do not fit the shapes.
    """
    size = path.stat().st_size
    start, header = _read_header(path, size)
    tensors = {
        name: _entry(path, name, entry, start, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    ordered = sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].span()))
    end, before = start, None
    for name, tensor in ordered:
        if tensor.offset < end:
            raise SourceError(
                f"{path}: the bytes of {name!r} overlap those of {before!r}; the header is wrong. {_AGAIN}"
            )
        if tensor.offset > end:
            raise SourceError(
                f"{path}: {tensor.offset - end} bytes before {name!r} belong to no tensor. {_AGAIN}"
            )
        end, before = tensor.offset + tensor.span() * tensor.dtype.itemsize, name
    if end != size:
        raise SourceError(f"{path}: {size - end} bytes at the end belong to no tensor. {_AGAIN}")
    return tensors


def _read_header(path: Path, size: int) -> tuple[int, dict[str, Any]]:
    """Where the data starts, and the header as it stands in the file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _HEADER_LIMIT or 8 + length > size:
            raise SourceError(
                f"{path} is truncated or is not a safetensors file: its header should be {length} bytes, "
                f"the file has {size}. {_AGAIN}"
            )
        raw = file.read(length)
    try:
        header = parse_json(raw.decode("utf-8"))
    except ValueError as error:
        raise SourceError(f"{path}: the header is not valid JSON ({error}). {_AGAIN}") from error
    if not isinstance(header, dict):
        raise SourceError(f"{path}: the header is a JSON {type(header).__name__}, not an object. {_AGAIN}")
    return 8 + length, header


def _entry(path: Path, name: str, entry: Any, start: int, size: int) -> Tensor:
    def is_sizes(value: Any) -> bool:
        return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise SourceError(
            f"{path}: the entry of {name!r} needs dtype, shape and data_offsets, "
            f"got {reprlib.repr(entry)}. {_AGAIN}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not is_sizes(shape) or not is_sizes(offsets) or len(offsets) != 2 or len(shape) > _MOST_AXES:
        raise SourceError(
            f"{path}: {name!r} has shape {reprlib.repr(shape)} "
            f"and offsets {reprlib.repr(offsets)}, which are not sizes. {_AGAIN}"
        )
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise SourceError(
            f"{path}: {name!r} has the unknown type {entry['dtype']!r}; known: {', '.join(DTYPES)}. "
            f"Save it again as F32, F16 or BF16."
        )
    begin, end = offsets
    if end > size - start or begin > end:
        raise SourceError(
            f"{path}: {name!r} should lie at bytes {begin} to {end} of the data, which has {size - start}; "
            f"the file is truncated or its header is wrong. {_AGAIN}"
        )
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise SourceError(
            f"{path}: {name!r} is {entry['dtype']}{shape}, {math.prod(shape) * dtype.itemsize} bytes, "
            f"but {end - begin} are stored. {_AGAIN}"
        )
    return Tensor(tuple(shape), dtype, path, start + begin)


def save_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write named arrays to a safetensors file, which appears under its name only when it is whole.

    Raises ValueError, naming all of them, for arrays of a type that the format lacks.
    """
    path = Path(path)
    wrong = [
        f"{name} ({value.dtype})" for name, value in tensors.items() if value.dtype not in DTYPES.values()
    ]
    if wrong:
        raise ValueError(
            f"safetensors files cannot hold {', '.join(wrong)}; known types: {', '.join(DTYPES)}."
        )
    if path.is_dir() or not path.parent.is_dir():
        why = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise ValueError(f"{path} {why}; name a file in a folder that exists.")
    ready = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    with writing(path) as partial:
        try:
            save_file(ready, partial, {"format": "pt"})
        except SafetensorError as error:  # how the package reports a full disk
            raise OSError(str(error)) from error
        partial.chmod(0o644)  # the package makes files that only their owner can read
    return path
