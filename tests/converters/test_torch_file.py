"""Files of torch.save without torch: what is read, and that nothing in them is ever run."""

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from converters import SourceError
from converters.tensor import Tensor
from converters.torch_file import open_torch


def values(found: Any) -> np.ndarray:
    assert isinstance(found, Tensor)
    return found.read()


def save(path: Path, content: Any, **kwargs: Any) -> Path:
    torch.save(content, path, **kwargs)
    return path


def repack(path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with some entries, named without their folder, replaced or left out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            new = change.get(name.partition("/")[2], data)
            if new is not None:
                archive.writestr(name, new)
    return path


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "bool"])
def test_tensors_are_read_in_their_own_type(tmp_path: Path, dtype: str, legacy: bool) -> None:
    tensor = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
    path = save(tmp_path / "x.pt", {"a": tensor}, _use_new_zipfile_serialization=not legacy)
    found = values(open_torch(path)["a"])
    assert found.dtype == (ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype))
    np.testing.assert_array_equal(found.astype(np.float64), tensor.double().numpy())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_views_share_a_storage_and_keep_strides_and_offset(tmp_path: Path, legacy: bool) -> None:
    base = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    views = {
        "whole": base, "transposed": base.T, "row": base[3], "column": base[:, 2], "steps": base[1::2, 1::3],
        "spread": base[0, :1].expand(4, 3, 1), "scalar": base[2, 2], "empty": base[:0],
    }  # fmt: skip
    found = open_torch(save(tmp_path / "x.pth", views, _use_new_zipfile_serialization=not legacy))
    for name, view in views.items():
        np.testing.assert_array_equal(values(found[name]), view.numpy(), err_msg=name)


def test_plain_data_beside_the_weights_is_inert(tmp_path: Path) -> None:
    content = {
        "state_dict": OrderedDict(w=torch.nn.Parameter(torch.ones(2)), b=torch.zeros(1)),
        "args": argparse.Namespace(model="DiT-XL/2", lr=1e-4, nested=[1, (2, None), {"x"}]),
        "dtype": torch.bfloat16, "size": torch.Size([1, 2]), "device": torch.device("cpu"), "epoch": 3,
    }  # fmt: skip
    content["state_dict"]._metadata = {"": {"version": 1}}
    found = open_torch(save(tmp_path / "x.pt", content))
    np.testing.assert_array_equal(values(found["state_dict"]["w"]), np.ones(2, np.float32))
    assert found["args"] == {"model": "DiT-XL/2", "lr": 1e-4, "nested": [1, (2, None), {"x"}]}
    assert (found["dtype"], found["size"], found["device"], found["epoch"]) == ("bfloat16", (1, 2), "cpu", 3)


class Calls:
    """An object whose pickle is a call."""

    def __init__(self, function: Any, *args: Any):
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_call_in_a_pickle_is_refused_by_name_and_does_not_happen(
    tmp_path: Path, protocol: int, legacy: bool
) -> None:
    witness = tmp_path / "it ran"
    bad = {"w": torch.ones(2), "x": Calls(os.system, f"touch '{witness}'")}
    path = save(tmp_path / "x.pth", bad, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        SourceError, match=r"posix\.system at byte \d+ of .*: refused; only tensors and plain data"
    ):
        open_torch(path)
    assert not witness.exists()
    assert os.system(f"touch '{witness}'") == 0, "the call would have left a trace"
    assert witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        Calls(eval, "1"), Calls(getattr, {}, "keys"), Calls(__import__, "os"), Path("x"), np.float64(1),
        io.BytesIO(), torch.nn.Linear(1, 1), Exception(),
    ],
    ids=lambda content: type(content).__name__,
)  # fmt: skip
def test_anything_but_tensors_and_plain_data_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(SourceError, match="refused"):
        open_torch(save(tmp_path / "x.pt", {"a": content}))


def global_(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


STORAGE = b"(X\7\0\0\0storage" + global_("torch", "FloatStorage") + b"X\1\0\0\0000X\3\0\0\0cpuK\4tQ"
REBUILD = global_("torch._utils", "_rebuild_tensor_v2")


def ints(*numbers: int) -> bytes:
    return b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t"


def tensor(shape: bytes, strides: bytes, offset: bytes = b"K\0", storage: bytes = STORAGE) -> bytes:
    return REBUILD + b"(" + storage + offset + shape + strides + b"\x89NtR"


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (tensor(ints(5), ints(1)), "leaves its storage 0 of 4 elements"),
        (tensor(ints(2), ints(1), b"K\3"), "leaves its storage"),
        (tensor(ints(2, 2), ints(3, 1)), "leaves its storage"),
        (tensor(ints(2), ints(-1)), "refused"),
        (tensor(ints(-2), ints(1)), "refused"),
        (tensor(ints(2, 2), ints(1)), "damaged"),
        (tensor(ints(2), ints(1), storage=ints(0, 0, 9)), "refused"),
        (STORAGE.replace(b"FloatStorage", b"Unknowns"), "refused"),
        (tensor(ints(4), ints(1)) + b"}X\4\0\0\0fileX\1\0\0\0/sb", "setting attributes of a Tensor"),
        (REBUILD + b"}X\1\0\0\0aK\1sb", "setting attributes of a method"),
        (global_("argparse", "Namespace") + b"}X\1\0\0\0aK\1sb", "setting attributes of a type"),
        (b"\x8c\2osh\0.", "damaged"),
        (b"\x82\1", "damaged"),
        (b"X\xff\xff\xff\x7f", "damaged"),
        (b"K\1r\xff\xff\xff\xffN", None),
    ],
)  # fmt: skip
def test_a_crafted_pickle_reaches_nothing(tmp_path: Path, program: bytes, what: str | None) -> None:
    path = save(tmp_path / "x.pt", {"a": torch.ones(4)})
    repack(path, {"data.pkl": b"\x80\2" + program + b"."})
    if what is None:  # a huge memo index is harmless
        assert open_torch(path) is None
        return
    with pytest.raises(SourceError, match=what):
        open_torch(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, part: float, legacy: bool) -> None:
    path = save(tmp_path / "x.pt", {"a": torch.ones(1000)}, _use_new_zipfile_serialization=not legacy)
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(SourceError, match=r"truncated|damaged"):
        open_torch(path)


def test_damaged_archives_are_refused_with_the_reason(tmp_path: Path) -> None:
    def archive(**change: Any) -> Path:
        return repack(save(tmp_path / "x.pt", {"a": torch.ones(4)}), **change)

    with pytest.raises(SourceError, match="data/0 is missing"):
        open_torch(archive(change={"data/0": None}))
    with pytest.raises(SourceError, match=r"should hold 4 x float32, but has 8 bytes"):
        open_torch(archive(change={"data/0": bytes(8)}))
    with pytest.raises(SourceError, match="is compressed"):
        open_torch(archive(change={}, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(SourceError, match="big-endian"):
        open_torch(archive(change={"byteorder": b"big"}))
    with pytest.raises(SourceError, match=r"not one of torch\.save"):
        open_torch(archive(change={"data.pkl": None}))


def test_a_torchscript_program_is_refused_as_such(tmp_path: Path) -> None:
    path = repack(save(tmp_path / "x.pt", {"a": torch.ones(4)}), {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/constants.pkl", pickle.dumps(()))
    with pytest.raises(SourceError, match="a TorchScript program"):
        open_torch(path)


def test_another_file_is_refused_with_its_first_bytes(tmp_path: Path) -> None:
    (path := tmp_path / "x.pt").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(SourceError, match=r"not a file of torch\.save .*<!DOCTYP"):
        open_torch(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SourceError, match=r"a pickle, but not one of torch\.save"):
        open_torch(path)


def test_an_encrypted_archive_and_a_crafted_list_of_storages_are_refused(tmp_path: Path) -> None:
    content = bytearray(save(tmp_path / "x.pt", {"a": torch.ones(2)}).read_bytes())
    at = -1
    while (at := content.find(b"PK\1\2", at + 1)) >= 0:
        content[at + 8] |= 1  # every entry of the directory says that it is encrypted
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(SourceError, match=r"damaged .*encrypted"):
        open_torch(tmp_path / "x.pt")
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [[1]])
    (tmp_path / "y.pt").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(SourceError, match="does not list the storages"):
        open_torch(tmp_path / "y.pt")


def test_strides_of_single_elements_do_not_count(tmp_path: Path) -> None:
    huge = b"(\x8a\x08" + struct.pack("<q", 2**62) + b"t"
    path = save(tmp_path / "x.pt", {"a": torch.ones(4)})
    repack(path, {"data.pkl": b"\x80\2" + tensor(ints(1), huge) + b"."})
    np.testing.assert_array_equal(open_torch(path).read(), np.ones(1, np.float32))
