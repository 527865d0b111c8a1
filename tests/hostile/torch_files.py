"""Files of torch.save that are programs, bombs or lies. A payload that runs makes the canary."""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converters.sources import open_source
from tests.hostile.door import CANARY, table, written

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


class Calls:
    """An object whose pickle is a call."""

    def __init__(self, function: Any, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def touch(folder: Path) -> str:
    return f"touch '{folder / CANARY}'"


def archive(program: bytes, extra: dict[str, bytes] | None = None, **options: Any) -> Callable[[Path], Any]:
    """A zip archive as torch.save makes it, around this pickle."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "x.pth", "w", **options) as file:
            file.writestr("x/data.pkl", program)
            file.writestr("x/data/0", bytes(16))
            for name, content in (extra or {}).items():
                file.writestr(name, content)

    return make


def pickled(content: Callable[[Path], Any], protocol: int = 2) -> Callable[[Path], Any]:
    """An archive of what the folder's content is, pickled."""
    return lambda folder: archive(pickle.dumps({"w": content(folder)}, protocol=protocol))(folder)


def legacy(*parts: Any) -> Callable[[Path], Any]:
    """The format before the archive: pickles in a row; bytes stand as they are."""

    def make(folder: Path) -> None:
        given = [part(folder) if callable(part) else part for part in parts]
        raw = [part if isinstance(part, bytes) else pickle.dumps(part, protocol=2) for part in given]
        (folder / "x.pth").write_bytes(b"".join(raw))

    return make


def name(module: str, what: str) -> bytes:
    return f"c{module}\n{what}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def program(*opcodes: bytes) -> bytes:
    return b"\x80\2" + b"".join(opcodes) + b"."


def storage(
    key: bytes = text("0"), count: bytes = b"K\4", kind: bytes = name("torch", "FloatStorage")
) -> bytes:
    return b"(" + text("storage") + kind + key + text("cpu") + count + b"tQ"


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
# Sixty pairs, each of the one before and itself again: 2**60 leaves to hash, compare or spell.
LAUGHS = b")q\0" + b"".join(
    b"0" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)
)
LONG = text("x" * 100_000) + b"q\0"


def many_copies() -> bytes:
    """A list of 100,000 items, made a set 1,000 times over: 100 MB of work from 100 kB."""
    start = b"]q\0(" + b"K\1" * 100_000 + b"e0" + name("builtins", "set") + b"q\0010"
    return start + b"h\1h\0\x85R0" * 1_000 + b"N"


CASES = table(
    "torch file",
    lambda folder, out: open_source(folder / "x.pth"),
    {
        "os.system": (pickled(lambda f: Calls(os.system, touch(f))), "posix.system at byte .* refused"),
        "os.system, protocol 4": (
            pickled(lambda f: Calls(os.system, touch(f)), protocol=4),
            "posix.system at byte .* refused",
        ),
        "builtins.eval": (
            pickled(lambda f: Calls(eval, f"open({str(f / CANARY)!r}, 'w')")),
            "builtin.*eval at byte .* refused",
        ),
        "builtins.exec": (
            pickled(lambda f: Calls(exec, f"open({str(f / CANARY)!r}, 'w')")),
            "builtin.*exec at byte .* refused",
        ),
        "a global through getattr": (
            archive(program(name("builtins", "getattr"), b"(", name("os", "path"), text("os"), b"tR")),
            "builtins.getattr at byte .* refused",
        ),
        "a dotted global": (
            archive(b"\x80\4" + text("torch") + text("serialization.os.system") + b"\x93."),
            "torch.serialization.os.system at byte .* refused",
        ),
        "a global with signs for the terminal": (
            archive(b"\x80\4" + text("torch\x1b[2J\n") + text("x") + b"\x93."),
            r"torch\?\[2J\?\.x at byte .* refused",
        ),
        "an object by INST": (archive(program(b"(", text("id"), b"ios\nsystem\n")), "os.system at byte"),
        "an object by OBJ": (archive(program(b"(", name("os", "system"), text("id"), b"o")), "os.system at"),
        "a NumPy array": (pickled(lambda f: np.ones(3)), "numpy.*_reconstruct at byte .* refused"),
        "an object array": (
            pickled(lambda f: np.array([Calls(os.system, touch(f))], dtype=object)),
            "refused",
        ),
        "attributes of what is there": (
            archive(program(REBUILD, b"}", text("__globals__"), b"K\1sb")),
            "setting attributes of a method",
        ),
        "a bare pickle of a call": (
            lambda f: (f / "x.pth").write_bytes(pickle.dumps(Calls(os.system, touch(f)), protocol=2)),
            "posix.system at byte .* refused",
        ),
        "a bare pickle without a protocol": (
            lambda f: (f / "x.pth").write_bytes(pickle.dumps(Calls(os.system, touch(f)), protocol=0)),
            "is not a file of torch.save",
        ),
        "a bare pickle of weights": (
            lambda f: (f / "x.pth").write_bytes(pickle.dumps({"w": [1.0]})),
            "a pickle, but not one of torch.save",
        ),
        "a call in the legacy format": (
            legacy(MAGIC, VERSION, {"little_endian": True}, lambda f: Calls(os.system, touch(f)), []),
            "posix.system at byte .* refused",
        ),
        "a call after the weights of the legacy format": (
            legacy(MAGIC, VERSION, {"little_endian": True}, {}, lambda f: Calls(os.system, touch(f))),
            "posix.system at byte .* refused",
        ),
        "a version that never ends": (
            legacy(MAGIC, program(LAUGHS), {"little_endian": True}),
            "legacy format in an unknown version",
        ),
        "a storage larger than its file, legacy": (
            legacy(
                MAGIC, VERSION, {"little_endian": True}, program(storage(count=b"\x8a\5\0\0\0\0\1")), ["0"]
            ),
            "leaves the file",
        ),
        "a storage larger than its entry": (
            archive(program(REBUILD, b"(", storage(count=b"M\0\1"), b"K\0K\1\x85K\1\x85\x89NtR")),
            "should hold 256 x float32, but has 16 bytes",
        ),
        "a storage by a path": (
            archive(program(storage(key=text("../../../etc/passwd")))),
            "data/../../../etc/passwd is missing",
        ),
        "a tensor larger than its storage": (
            archive(program(REBUILD, b"(", storage(), b"K\0M\0\1\x85K\1\x85\x89NtR")),
            "leaves its storage",
        ),
        "a tensor of 1,000 axes": (
            archive(
                program(
                    REBUILD, b"(", storage(), b"K\0(" + b"K\1" * 1000 + b"t(" + b"K\1" * 1000 + b"t\x89NtR"
                )
            ),
            "a tensor of 1000 axes",
        ),
        "a key that takes years to hash": (
            archive(program(b"}", LAUGHS, b"K\1s")),
            "a key or member of a set",
        ),
        "keys that take years to hash": (
            archive(program(b"}(", LAUGHS, b"K\1u")),
            "a key or member of a set",
        ),
        "a set that takes years to hash": (archive(b"\x80\4\x8f(" + LAUGHS + b"\x90."), "member of a set"),
        "a frozen set that takes years": (archive(b"\x80\4(" + LAUGHS + b"\x91."), "member of a set"),
        "a stored type that takes years": (archive(program(storage(kind=LAUGHS))), "the stored object"),
        "a device that takes all memory to spell": (
            archive(program(name("torch", "device"), b"(", LAUGHS, b"tR")),
            "a device that is no name and number",
        ),
        "a device of devices": (
            archive(program(name("torch", "device"), b"q\0(", LONG, b"h\0tR")),
            "a device that is no name and number",
        ),
        "many copies": (archive(program(many_copies())), "copies of more than"),
        "a bytearray of 2**60": (archive(b"\x80\5\x96" + struct.pack("<Q", 2**60) + b"."), "a bytearray"),
        "a text of 2**31": (archive(program(b"X\xff\xff\xff\x7f")), "damaged at byte"),
        "a text of 2**62, legacy": (
            legacy(MAGIC, VERSION, {"little_endian": True}, b"\x80\4\x8d" + struct.pack("<Q", 2**62)),
            "damaged at byte",
        ),
        "a number of 1,000,000 digits": (
            archive(program(b"I" + b"9" * 1_000_000 + b"\n")),
            "damaged at byte",
        ),
        "a dict that contains itself": (
            archive(program(b"}q\0", text("model"), b"h\0s")),
            "a dict that contains itself",
        ),
        "lists 100,000 deep": (
            archive(program(b"]" * 100_000, b"a" * 99_999)),
            "holds a list, and no state dict",
        ),
        "a compressed bomb": (
            archive(bytes(10_000_000), compression=zipfile.ZIP_DEFLATED),
            "is compressed, which torch.save never does",
        ),
        "an entry larger than the archive": (
            lambda f: _lie(f, struct.pack("<I", 2**31)),
            "is larger than the file",
        ),
        "entries that lead out of the archive": (
            archive(program(b"}"), {"../../escaped": b"x", "/tmp/escaped": b"x"}),
            "no state dict",
        ),
        "an entry with signs for the terminal": (
            archive(program(b"}"), {"x/data/\x1b[2J": b"x"}),
            "has an entry called 'x/data",
        ),
        "an archive of something else": (
            lambda f: zipfile.ZipFile(f / "x.pth", "w").close(),
            "truncated or damaged|not one of torch.save",
        ),
        "a web page": (written("x.pth", "<!DOCTYPE html><html>"), "is not a file of torch.save"),
        "nothing": (written("x.pth", b""), "is not a file of torch.save"),
    },
)


def _lie(folder: Path, size: bytes) -> None:
    """Say in the directory of the archive that the pickle is larger."""
    archive(program(b"}"))(folder)
    content = bytearray((folder / "x.pth").read_bytes())
    at = content.find(b"PK\1\2")
    content[at + 20 : at + 28] = size * 2
    (folder / "x.pth").write_bytes(content)
