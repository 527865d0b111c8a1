"""Files written by torch.save, read without torch and without running anything that they contain.

Their pickles are read by `torch_pickle.Reader`. Tensors stay in the file until they are read.
"""

import dataclasses
import io
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converters.tensor import SourceError
from converters.torch_pickle import AGAIN, RESAVE, Reader, Storage, short

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


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
        raise SourceError(f"{path} is not a file of torch.save (it starts with {start[:8]!r}). {RESAVE}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _open_zip(path, archive)
    except SourceError:
        raise
    except (zipfile.BadZipFile, RuntimeError, OSError, ValueError, EOFError, struct.error) as error:
        raise SourceError(f"{path} is truncated or damaged ({short(error)}). {AGAIN}") from error


def _open_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1 or f"{roots[0]}constants.pkl" in entries:
        kind = "a TorchScript program" if roots else "a zip archive, but not one of torch.save"
        raise SourceError(f"{path} is {kind}; it cannot be read as weights. {RESAVE}")
    root, size = roots[0], path.stat().st_size
    if strange := [name for name in entries if not name.isprintable()]:
        raise SourceError(
            f"{path} has an entry called {reprlib.repr(strange[0])}, as torch.save never does. {RESAVE}"
        )
    packed = [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise SourceError(f"{path}: {packed[0]!r} is compressed, which torch.save never does. {RESAVE}")
    if larger := [name for name, entry in entries.items() if entry.file_size > size]:
        raise SourceError(f"{path}: {larger[0]!r} is larger than the file, which is truncated. {AGAIN}")
    if f"{root}byteorder" in entries and archive.read(f"{root}byteorder").strip() != b"little":
        raise SourceError(
            f"{path} was written on a big-endian machine. Save it again on a little-endian one."
        )

    def locate(storage: Storage) -> Storage:
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise SourceError(f"{path}: the storage {name} is missing. {AGAIN}")
        begin, stored = entries[name].header_offset, entries[name].file_size
        with path.open("rb") as file:
            file.seek(begin)
            header = struct.unpack("<4s22x2H", file.read(30))
        # The name and the extra field of an entry lie between its header and its bytes.
        begin += 30 + header[1] + header[2]
        if header[0] != b"PK\3\4" or begin + stored > size:
            raise SourceError(f"{path}: the storage {name} leaves the file, which is truncated. {AGAIN}")
        if storage.count * storage.dtype.itemsize > stored:
            raise SourceError(
                f"{path}: the storage {name} should hold {storage.count} x {storage.dtype}, "
                f"but has {stored} bytes. {AGAIN}"
            )
        return dataclasses.replace(storage, offset=begin)

    stream = io.BytesIO(archive.read(f"{root}data.pkl"))
    return Reader(stream, path, f"{root}data.pkl", locate).read()


def _open_legacy(path: Path, file: io.BufferedIOBase) -> Any:
    """The format before torch 1.6: five pickles, then each storage as its length and its bytes.

    Where the storages lie is known only at the end, so the pickle of tensors is read twice.
    """
    storages: dict[str, Storage] = {}

    def remember(storage: Storage) -> Storage:
        return storages.setdefault(storage.key, storage)

    def pickled(locate: Callable[[Storage], Storage]) -> Any:
        return Reader(file, path, "its pickle", locate).read()

    file.seek(0)
    if pickled(remember) != _LEGACY_MAGIC:
        raise SourceError(f"{path} is a pickle, but not one of torch.save. {RESAVE}")
    version, system = pickled(remember), pickled(remember)
    if version != _LEGACY_VERSION or not isinstance(system, dict) or not system.get("little_endian"):
        raise SourceError(
            f"{path} has the legacy format in an unknown version or byte order ({reprlib.repr(version)}). "
            f"{RESAVE}"
        )
    main = file.tell()
    pickled(remember)
    keys = pickled(remember)
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or set(keys) != storages.keys():
        raise SourceError(f"{path} does not list the storages that its tensors use. {AGAIN}")
    size = path.stat().st_size
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        begin = file.tell()
        end = begin + count * storages[key].dtype.itemsize
        if count != storages[key].count or end > size:
            raise SourceError(
                f"{path}: the storage {key} leaves the file, which is truncated or damaged. {AGAIN}"
            )
        storages[key] = dataclasses.replace(storages[key], offset=begin)
        file.seek(end)
    file.seek(main)
    return pickled(remember)
