"""Safetensors files that lie about what they hold, and indices of shards that lead astray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converters.sources import open_source
from tests.hostile.door import table, written


def file(header: Any, data: bytes = bytes(16), length: int | None = None) -> Callable[[Path], Any]:
    """A file of this header, which says that it has another length where one is given."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(raw) if length is None else length
    return written("x.safetensors", size.to_bytes(8, "little") + raw + data)


def entry(dtype: Any = "F32", shape: Any = (4,), begin: Any = 0, end: Any = 16) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def enter(folder: Path, out: Path) -> Any:
    return [tensor.read() for tensor in open_source(folder / "x.safetensors").tensors.values()]


CASES = table(
    "safetensors",
    enter,
    {
        "empty file": (written("x.safetensors", b""), "is truncated or is not a safetensors file"),
        "header of 2**64 - 1 bytes": (
            file({}, length=2**64 - 1),
            "its header should be 18446744073709551615",
        ),
        "header longer than the file": (file({"a": entry()}, length=5000), "the file has"),
        "header that is no JSON": (file(b"\x80\4}."), "header is not valid JSON"),
        "header that is no UTF-8": (file(b'{"\xff": 1}'), "header is not valid JSON"),
        "header that is a number": (file(3), "a JSON int, not an object"),
        "deep nesting": (file(b'{"a":' * 50_000), "nested too deeply"),
        "number of 100,000 digits": (file(b'{"a":' + b"9" * 100_000 + b"}"), "header is not valid JSON"),
        "NaN": (file(b'{"a": NaN}'), "NaN is no number"),
        "a name twice": (file(b'{"a": 1, "b": 2, "a": 3}'), "'a' stands twice"),
        "overlapping tensors": (
            file({"a": entry(shape=[3], end=12), "b": entry(shape=[2], begin=8)}),
            "'b' overlap those of 'a'",
        ),
        "all tensors at the same bytes": (
            file({str(i): entry() for i in range(50)}),
            "overlap",
        ),
        "bytes past the end": (file({"a": entry(shape=[8], end=32)}), "should lie at bytes 0 to 32"),
        "end before begin": (file({"a": entry(begin=16, end=0)}), "should lie at bytes 16 to 0"),
        "negative offset": (file({"a": entry(begin=-16, end=0)}), "not sizes"),
        "negative shape": (file({"a": entry(shape=[-2, -2])}), "not sizes"),
        "shape whose product wraps at 64 bits": (
            file({"a": entry(shape=[2**32, 2**32 + 1])}),
            "but 16 are stored",
        ),
        "shape of another type": (file({"a": entry("F64")}), "32 bytes, but 16 are stored"),
        "100,000 axes": (file({"a": entry(shape=[1] * 100_000, end=4)}), "not sizes"),
        "shape that is text": (file({"a": entry(shape="4")}), "not sizes"),
        "type that is a list": (file({"a": entry(dtype=["F32"])}), "unknown type"),
        "type of Python": (file({"a": entry(dtype="O")}), "unknown type 'O'"),
        "bytes of no tensor": (
            file({"a": entry(shape=[1], end=4)}),
            "12 bytes at the end belong to no tensor",
        ),
        "an index that leads away": (
            lambda folder: (folder / "x.safetensors").symlink_to(folder / "nowhere"),
            "does not exist",
        ),
    },
)


def index(weight_map: Any) -> Callable[[Path], Any]:
    return written("x.index.json", json.dumps({"weight_map": weight_map}))


CASES += table(
    "shards",
    lambda folder, out: open_source(folder / "x.index.json"),
    {
        "path out of the folder": (
            index({"a": "../../etc/shadow"}),
            "refused; shards lie beside their index",
        ),
        "absolute path": (index({"a": "/etc/passwd"}), "refused; shards lie beside"),
        "an index as its own shard": (index({"a": "x.index.json"}), "as a shard, which is no weights file"),
        "names that are no text": (index({"a": {"b": 1}}), "lacks 1 of the 1 shards"),
        "deep nesting": (written("x.index.json", "[" * 100_000), "not valid JSON"),
    },
)
