"""The pickles of torch.save as data: an unpickler to which only tensors, containers and inert values exist.

A pickle is a program. This one may name what is listed in `Reader`, and is refused, by name, as soon as it
asks for anything else, or for work that grows faster than its length.
"""

import dataclasses
import io
import pickle
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
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
RESAVE = (
    "Load it in the program that wrote it and save the bare weights: torch.save(model.state_dict(), path)."
)
AGAIN = "Copy or download it again."
_MOST_AXES = 64  # as NumPy has it
_MOST_ITEMS = 200_000  # that calls may copy from lists into sets, dicts and sizes, in all of a file


class Namespace(dict):
    """The attributes of an argparse.Namespace, as data."""

    def __init__(self) -> None:  # attributes come later, as a dict whose keys were looked at
        super().__init__()


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `count` elements at byte `offset` of the file; tensors are views of it."""

    key: str
    dtype: np.dtype
    count: int
    offset: int = 0


def short(said: object) -> str:
    """What it says, on one line that a terminal can show: it may quote what a file holds."""
    text = "".join(sign if sign.isprintable() else "?" for sign in str(said)[:200])
    return text if len(str(said)) <= 200 else f"{text} ..."


def _is_quick(part: Any) -> bool:
    """Whether it is a number or text whose hash takes no time that a file could make long."""
    return part.bit_length() <= 64 if isinstance(part, int) else isinstance(part, _TEXTS)


_TEXTS = (str, bytes, float, type(None))
_DISPATCH = pickle._Unpickler.dispatch
# Opcodes that hash, and which of the values on the stack: since the mark, but for the first of them.
_HASHING = {
    pickle.SETITEM: slice(-2, -1),
    pickle.SETITEMS: slice(0, None, 2),
    pickle.DICT: slice(0, None, 2),
    pickle.ADDITEMS: slice(0, None),
    pickle.FROZENSET: slice(0, None),
}


def _looking(opcode: Callable[..., None], hashed: slice) -> Callable[..., None]:
    """The opcode, after a look at what it will hash."""

    def run(reader: "Reader") -> None:
        reader._look_at(reader.stack[hashed])
        opcode(reader)

    return run


class Reader(pickle._Unpickler):  # the Python one: it can say where it stands, and has no memo to blow up
    """An unpickler to which only tensors, containers and inert values exist."""

    stack: list[Any]  # of the base class

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **_DISPATCH,
        **{opcode[0]: _looking(_DISPATCH[opcode[0]], hashed) for opcode, hashed in _HASHING.items()},
    }

    def __init__(
        self, stream: io.BufferedIOBase, path: Path, entry: str, locate: Callable[[Storage], Storage]
    ):
        super().__init__(stream)
        self._stream, self._path, self._entry, self._locate = stream, path, entry, locate
        self._items = 0
        self._known: dict[str, Any] = {
            "collections.OrderedDict": self._ordered,
            "argparse.Namespace": Namespace,
            "builtins.set": self._set,
            "__builtin__.set": self._set,
            "torch.Size": self._size,
            "torch.device": self._device,
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
                f"({type(error).__name__}: {short(error)}). {AGAIN}"
            ) from error

    def _refuse(self, what: str) -> SourceError:
        return SourceError(
            f"{short(what)} at byte {self._stream.tell()} of {self._entry} in {self._path}: refused; only "
            f"tensors and plain data are read, nothing is run. {RESAVE}"
        )

    def find_class(self, module: str, name: str) -> Any:
        known = self._known.get(f"{module}.{name}")
        if known is None:
            raise self._refuse(f"{module}.{name}")
        return known

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, *view = pid
        if (
            kind != "storage"
            or not isinstance(dtype, str)
            or dtype not in STORAGES
            or not isinstance(key, str)
            or not key.isprintable()
            or type(count) is not int
            or count < 0
            or view not in ([], [None])
        ):
            raise self._refuse(f"the stored object {reprlib.repr(pid)}")
        return self._locate(Storage(key, STORAGES[dtype], count))

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        if max(len(shape), len(strides)) > _MOST_AXES:
            raise self._refuse(f"a tensor of {len(shape)} axes")
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
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
                f"leaves its storage {storage.key} of {storage.count} elements. {AGAIN}"
            )
        return tensor

    def _parameter(self, tensor: Any, *_: Any) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise self._refuse(f"a parameter made of {type(tensor).__name__}")
        return tensor

    def _ordered(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        self._spend(pairs)
        self._look_at(key for key, _ in pairs)
        return OrderedDict(pairs)

    def _set(self, items: Any = ()) -> set[Any]:
        self._spend(items)
        self._look_at(items)
        return set(items)

    def _size(self, sizes: Any = ()) -> tuple[Any, ...]:
        self._spend(sizes)
        return tuple(sizes)

    def _device(self, *parts: Any) -> str:
        if len(parts) > 2 or not all(_is_quick(part) and len(str(part)) < 32 for part in parts):
            raise self._refuse("a device that is no name and number")
        return ":".join(map(str, parts))

    def _spend(self, items: Any) -> None:
        """Each call may copy the same long list again."""
        self._items += len(items)
        if self._items > _MOST_ITEMS:
            raise self._refuse(f"copies of more than {_MOST_ITEMS} items")

    def _look_at(self, keys: Iterable[Any]) -> None:
        """Refuse what takes long to hash: tuples of tuples, each of which stands there twice, and so on."""
        for key in keys:
            parts = key[: _MOST_AXES + 1] if type(key) is tuple else (key,)
            if len(parts) > _MOST_AXES or not all(map(_is_quick, parts)):
                raise self._refuse(f"a key or member of a set of type {type(key).__name__}, not plain")

    def _build(self) -> None:
        """Set attributes: those of a Namespace are kept, those of an OrderedDict (`_metadata`) not needed."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Namespace and isinstance(state, dict):
            self._spend(state)
            target.update(state)
        elif type(target) is not OrderedDict:
            raise self._refuse(f"setting attributes of a {type(target).__name__}")

    def _byte_array(self) -> None:
        raise self._refuse("a bytearray")  # would be allocated before anything of it is read

    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.BYTEARRAY8[0]] = _byte_array
