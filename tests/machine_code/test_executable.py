"""Reading machine code out of an executable: formats made by hand, byte by byte."""

import struct

import pytest

from tests.machine_code.executable import BLOCK, BLOCK_HEADER, CUDA, SIGNATURE, cubins, records, unsnap

X86_64 = 62


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def chunk(kind: str, data: bytes = b"", count: int = 0) -> bytes:
    """Hashes are left 0: nothing here checks them."""
    size, number = len(data).to_bytes(8, "little"), count.to_bytes(7, "little")
    return bytes(8) + size + bytes(8) + kind.encode() + number + bytes(8) + data


def riegeli(*values: bytes, compression: bytes = b"\0") -> bytes:
    """A file with one chunk of records, cut into blocks."""
    sizes = b"".join(varint(len(value)) for value in values)
    data = compression + varint(len(sizes)) + sizes + b"".join(values)
    chunks = chunk("s") + chunk("m", b"made by hand") + chunk("r", data, len(values))
    room = BLOCK - BLOCK_HEADER
    blocks = [chunks[at : at + room] for at in range(0, len(chunks), room)]
    headers = [SIGNATURE.ljust(BLOCK_HEADER, b"\0")] + [bytes(BLOCK_HEADER)] * (len(blocks) - 1)
    return b"".join(header + block for header, block in zip(headers, blocks, strict=True))


def elf(machine: int, body: bytes) -> bytes:
    """An ELF file without program headers, whose one section header is its end."""
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<H", header, 18, machine)
    struct.pack_into("<QQ", header, 32, 0, 64 + len(body))
    struct.pack_into("<HHHH", header, 54, 0, 0, 64, 1)
    return bytes(header) + body + bytes(64)


@pytest.mark.parametrize("behind", [b"", b"a message that is longer than the header of a chunk"])
def test_records_come_back_whatever_stands_behind_the_file(behind: bytes) -> None:
    values = [b"one", b"", bytes(range(256)) * 600]  # longer than two blocks
    assert list(records(riegeli(*values) + behind)) == values


def test_an_unknown_compression_is_an_error_and_not_an_empty_file() -> None:
    with pytest.raises(ValueError, match="compressed with 'z'; only Snappy"):
        list(records(riegeli(b"one", compression=b"z")))


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\x03" b"\x08abc", b"abc"),  # new, its length in the tag
        (b"\x46" b"\xf0\x45" + b"a" * 70, b"a" * 70),  # new, its length in a byte
        (b"\x07" b"\x08abc" b"\x01\x03", b"abcabca"),  # a copy of 4 from 3 back
        (b"\x06" b"\x00a" b"\x12\x01\x00", b"aaaaaa"),  # a copy of 5 from 1 back, which is its own output
        (b"\x05" b"\x08abc" b"\x07\x02\x00\x00\x00", b"abcbc"),  # a copy with a far offset
    ],
)  # fmt: skip
def test_snappy_is_undone(data: bytes, value: bytes) -> None:
    assert unsnap(data) == value


def test_gpu_binaries_are_found_in_files_within_files_and_others_are_not() -> None:
    code = [elf(CUDA, b"first"), elf(CUDA, b"second, longer")]
    inner = riegeli(b"a launcher: " + elf(X86_64, b"runs on the host: " + code[0]), code[1])
    assert cubins(b"a message: " + riegeli(b"text", b"of which this is a part: " + inner)) == code
