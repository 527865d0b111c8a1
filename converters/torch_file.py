"""Files written by torch.save, read without torch and without running anything that they contain.

A pickle is a program; here it may name only the tensors, containers and inert values listed in `_Reader`, and
is refused, by name, as soon as it asks for anything else. Tensors stay in the file until they are read.
"""

import dataclasses
import io
import pickle
import reprlib
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from converters.tensor import BFLOAT16, SourceError, Tensor

STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
# torch.<name> also appears as plain data, in saved settings.
_NAMED = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_RESAVE = (
    "Load it in the program that wrote it and save the bare weights: torch.save(model.state_dict(), path)."
)
_AGAIN = "Copy or download it again."


class Namespace(dict):
    """The attributes of an argparse.Namespace, as data."""


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of `count` elements at byte `offset` of the file; tensors are views of it."""

    key: str
    dtype: np.dtype
    count: int
    offset: int = 0


def open_torch(path: Path) -> Any:
    """What the file holds: dicts, lists, numbers and strings as they are, tensors as `Tensor`.

    Raises SourceError for a damaged file, for a pickle that asks for more than data, and for other formats
    than the two of torch.save (a zip archive since torch 1.6; before, pickles in a row).
    """
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(pickle.PROTO):
            return _open_legacy(path, file)
    if not start.startswith(b"PK"):
        raise SourceError(f"{path} is not a file of torch.save (it starts with {start[:8]!r}). {_RESAVE}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _open_zip(path, archive)
    except SourceError:
        raise
    except (zipfile.BadZipFile, RuntimeError, OSError, ValueError, struct.error) as error:
        raise SourceError(f"{path} is truncated or damaged ({error}). {_AGAIN}") from error


def _open_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
        kind = "a TorchScript program" if roots else "a zip archive, but not one of torch.save"
        raise SourceError(f"{path} is {kind}; it cannot be read as weights. {_RESAVE}")
    root, size = roots[0], path.stat().st_size
    packed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise SourceError(f"{path}: {packed[0]} is compressed, which torch.save never does. {_RESAVE}")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder").strip() != b"little":
        raise SourceError(
            f"{path} was written on a big-endian machine. Save it again on a little-endian one."
        )

    def locate(storage: _Storage) -> _Storage:
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise SourceError(f"{path}: the storage {name} is missing. {_AGAIN}")
        begin, stored = entries[name].header_offset, entries[name].file_size
        with path.open("rb") as file:
            file.seek(begin)
            header = struct.unpack("<4s22x2H", file.read(30))
        # The name and the extra field of an entry lie between its header and its bytes.
        begin += 30 + header[1] + header[2]
        if header[0] != b"PK\3\4" or begin + stored > size:
            raise SourceError(f"{path}: the storage {name} leaves the file, which is truncated. {_AGAIN}")
        if storage.count * storage.dtype.itemsize > stored:
            raise SourceError(
                f"{path}: the storage {name} should hold {storage.count} x {storage.dtype}, "
                f"but has {stored} bytes. {_AGAIN}"
            )
        return dataclasses.replace(storage, offset=begin)

    stream = io.BytesIO(archive.read(f"{root}data.pkl"))
    return _Reader(stream, path, f"{root}data.pkl", locate).read()


def _open_legacy(path: Path, file: io.BufferedIOBase) -> Any:
    """The format before torch 1.6: five pickles, then each storage as its length and its bytes.

    Where the storages lie is known only at the end, so the pickle of tensors is read twice.
    """
    storages: dict[str, _Storage] = {}

    def remember(storage: _Storage) -> _Storage:
        return storages.setdefault(storage.key, storage)

    def pickled(locate: Callable[[_Storage], _Storage]) -> Any:
        return _Reader(file, path, "its pickle", locate).read()

    file.seek(0)
    if pickled(remember) != _LEGACY_MAGIC:
        raise SourceError(f"{path} is a pickle, but not one of torch.save. {_RESAVE}")
    version, system = pickled(remember), pickled(remember)
    if version != _LEGACY_VERSION or not isinstance(system, dict) or not system.get("little_endian"):
        raise SourceError(
            f"{path} has the legacy format in an unknown version or byte order ({version!r}). {_RESAVE}"
        )
    main = file.tell()
    pickled(remember)
    keys = pickled(remember)
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or set(keys) != storages.keys():
        raise SourceError(f"{path} does not list the storages that its tensors use. {_AGAIN}")
    size = path.stat().st_size
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        begin = file.tell()
        end = begin + count * storages[key].dtype.itemsize
        if count != storages[key].count or end > size:
            raise SourceError(
                f"{path}: the storage {key} leaves the file, which is truncated or damaged. {_AGAIN}"
            )
        storages[key] = dataclasses.replace(storages[key], offset=begin)
        file.seek(end)
    file.seek(main)
    return pickled(remember)


class _Reader(pickle._Unpickler):  # the Python one: it can say where it stands, and has no memo to blow up
    """An unpickler to which only tensors, containers and inert values exist."""

    stack: list[Any]  # of the base class

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(
        self, stream: io.BufferedIOBase, path: Path, entry: str, locate: Callable[[_Storage], _Storage]
    ):
        super().__init__(stream)
        self._stream, self._path, self._entry, self._locate = stream, path, entry, locate
        self._known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "argparse.Namespace": Namespace,
            "builtins.set": set,
            "__builtin__.set": set,
            "torch.Size": tuple,
            "torch.device": lambda *args: ":".join(str(arg) for arg in args),
            "torch.nn.parameter.Parameter": "torch.nn.parameter.Parameter",
            "torch.Tensor": "torch.Tensor",
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
            "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, args, state: rebuild(*args),
            **{f"torch.{name}": name for name in (*STORAGES, *_NAMED)},
        }

    def read(self) -> Any:
        """The object that the pickle describes."""
        try:
            return super().load()
        except SourceError:
            raise
        except Exception as error:  # nobody can foresee what a damaged or hostile pickle raises
            raise SourceError(
                f"{self._entry} of {self._path} is damaged at byte {self._stream.tell()} "
                f"({type(error).__name__}: {error}). {_AGAIN}"
            ) from error

    def _refuse(self, what: str) -> SourceError:
        return SourceError(
            f"{what} at byte {self._stream.tell()} of {self._entry} in {self._path}: refused; only tensors "
            f"and plain data are read, nothing is run. {_RESAVE}"
        )

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get(f"{module}.{name}")
        if known is None:
            raise self._refuse(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        if (
            kind != "storage"
            or dtype not in STORAGES
            or type(count) is not int
            or count < 0
            or view not in ([], [None])
        ):
            raise self._refuse(f"the stored object {reprlib.repr(pid)}")
        return self._locate(_Storage(str(key), STORAGES[dtype], count))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise self._refuse(f"a tensor of shape {reprlib.repr(shape)} and strides {reprlib.repr(strides)}")
        tensor = Tensor(
            tuple(shape),
            storage.dtype,
            self._path,
            storage.offset + offset * storage.dtype.itemsize,
            tuple(strides),
        )
        if offset + tensor.span() > storage.count:
            raise SourceError(
                f"{self._path}: a tensor of shape {list(shape)}, strides {list(strides)} and offset {offset} "
                f"leaves its storage {storage.key} of {storage.count} elements. {_AGAIN}"
            )
        return tensor

    def _parameter(self, tensor: Any, *_: Any) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise self._refuse(f"a parameter made of {type(tensor).__name__}")
        return tensor

    def _build(self) -> None:
        """Set attributes: those of a Namespace are kept, those of an OrderedDict (`_metadata`) not needed."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Namespace and isinstance(state, dict):
            target.update(state)
        elif type(target) is not OrderedDict:
            raise self._refuse(f"setting attributes of a {type(target).__name__}")

    dispatch[pickle.BUILD[0]] = _build
