"""safetensors files: what is read, and every way in which a file can be broken."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import SourceError, save_safetensors
from converters.safetensors_file import open_safetensors

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "scalar": np.array(7.5, np.float64),
    "empty": np.zeros((0, 4), np.float32),
    "bf16": np.arange(3).astype(ml_dtypes.bfloat16),
}


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def test_every_tensor_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "x.safetensors", {"format": "pt"})
    tensors = open_safetensors(tmp_path / "x.safetensors")
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name].read(), array)


def test_what_we_write_the_safetensors_package_reads(tmp_path: Path) -> None:
    arrays = {name: array for name, array in ARRAYS.items() if name != "bf16"} | {"t": ARRAYS["a"].T}
    save_safetensors(tmp_path / "y.safetensors", arrays)
    found = load_file(tmp_path / "y.safetensors")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


def test_a_type_that_the_format_lacks_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot hold c \(complex128\)"):
        save_safetensors(tmp_path / "z.safetensors", {"c": np.zeros(2, complex)})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_safetensors(tmp_path / "z.safetensors", {"a": ARRAYS["a"]})

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_safetensors(path, {"b": ARRAYS["b"]})
    assert [file.name for file in tmp_path.iterdir()] == ["z.safetensors"]
    assert load_file(path).keys() == {"a"}


@pytest.mark.parametrize("kept", [0, 5, 8, 60, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, kept: int) -> None:
    save_file(ARRAYS, whole := tmp_path / "x.safetensors")
    (short := tmp_path / "short.safetensors").write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(SourceError, match=r"truncated.*Copy or download it again"):
        open_safetensors(short)


TWO = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 8, 16)}


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (b"{nonsense", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        ([1], "a JSON list, not an object"),
        ({"a": 3}, "needs dtype, shape and data_offsets"),
        ({"a": {**entry("F32", [4], 0, 16), "more": 1}}, "needs dtype, shape and data_offsets"),
        ({"a": entry("F4", [4], 0, 16)}, "unknown type 'F4'"),
        ({"a": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}}, "unknown type"),
        ({"a": entry("F32", [-4], 0, 16)}, "not sizes"),
        ({"a": entry("F32", [True], 0, 16)}, "not sizes"),
        ({"a": entry("F32", [2.0], 0, 16)}, "not sizes"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}, "not sizes"),
        ({"a": entry("F32", [3], 0, 16)}, r"12 bytes, but 16 are stored"),
        ({"a": entry("F32", [8], 0, 32)}, "should lie at bytes 0 to 32 of the data, which has 16"),
        ({"a": entry("F32", [2], 16, 8)}, "should lie at bytes 16 to 8"),
        ({**TWO, "b": entry("F32", [3], 4, 16)}, "'b' overlap those of 'a'"),
        ({**TWO, "b": entry("F32", [1], 12, 16)}, "4 bytes before 'b' belong to no tensor"),
        ({"a": TWO["a"]}, "8 bytes at the end belong to no tensor"),
    ],
)
def test_a_broken_header_is_one_line_that_says_what_is_wrong(tmp_path: Path, header: Any, what: str) -> None:
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(SourceError, match=what) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_twice_named_tensor_is_found_at_once_among_many(tmp_path: Path) -> None:
    names = ",".join(f'"{i}": 0' for i in range(100_000))
    path = write(tmp_path / "x.safetensors", b"{" + names.encode() + b', "99999": 1}')
    with pytest.raises(SourceError, match="'99999' stands twice"):
        open_safetensors(path)


def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be written: there is no folder .*nowhere"):
        save_safetensors(tmp_path / "nowhere/x.safetensors", ARRAYS)
    with pytest.raises(ValueError, match="is a folder; name a file"):
        save_safetensors(tmp_path, ARRAYS)


def test_a_header_longer_than_the_format_allows_is_refused_unread(tmp_path: Path) -> None:
    (path := tmp_path / "x.safetensors").write_bytes((2**62).to_bytes(8, "little") + bytes(100))
    with pytest.raises(SourceError, match="its header should be 4611686018427387904 bytes"):
        open_safetensors(path)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    save_file({"a": ARRAYS["a"]}, path := tmp_path / "x.safetensors")
    tensor = open_safetensors(path)["a"]
    os.truncate(path, path.stat().st_size - 4)
    with pytest.raises(SourceError, match="ends 4 bytes before the end of a tensor"):
        tensor.read()


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    path = save_safetensors(tmp_path / "a.safetensors", {"w": np.zeros(3, np.float32)})
    assert path.stat().st_mode & 0o777 == 0o644
