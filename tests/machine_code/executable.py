"""The machine code in a compiled program that no device has loaded.

A serialized executable is protocol buffers whose large parts are Riegeli files (Google's record format), one
in another. Their chunks may be compressed with Snappy. In what they hold, each GPU binary is an ELF file.
Nothing here depends on field numbers: records are expanded where they stand, and ELF files found by their
magic number.
"""

import struct
from collections.abc import Iterator

CUDA = 190  # the machine number of the vendor's GPUs in an ELF header
SIGNATURE = bytes.fromhex("83af70d10d884a3f")  # begins a Riegeli file
BLOCK, BLOCK_HEADER, CHUNK_HEADER = 1 << 16, 24, 40
SIMPLE, FILE_SIGNATURE, METADATA, PADDING = b"rsmp"
UNCOMPRESSED, SNAPPY = 0, ord("s")
NEW, NEAR_COPY, COPY = 0, 1, 2  # the two lowest bits of a tag of Snappy; 3 is a copy from far away


def cubins(serialized: bytes) -> list[bytes]:
    """The GPU binaries in a serialized executable, in order."""
    data = expanded(serialized)
    return [elf for elf in _elfs(data) if struct.unpack_from("<H", elf, 18)[0] == CUDA]


def expanded(data: bytes) -> bytes:
    """The data with every Riegeli file replaced by its records."""
    start = data.find(SIGNATURE)
    if start < 0:
        return data
    return data[:start] + b"".join(expanded(record) for record in records(data[start:]))


def records(file: bytes) -> Iterator[bytes]:
    """The records of a Riegeli file, which may have other bytes behind it.

    Raises ValueError for a chunk or a compression that XLA did not use when this was written.
    """
    data = b"".join(file[at + BLOCK_HEADER : at + BLOCK] for at in range(0, len(file), BLOCK))
    at = 0
    while at + CHUNK_HEADER <= len(data):
        size, kind, count = (
            int.from_bytes(data[at + a : at + b], "little") for a, b in ((8, 16), (24, 25), (25, 32))
        )
        chunk = data[at + CHUNK_HEADER : at + CHUNK_HEADER + size]
        at += CHUNK_HEADER + size
        if kind == SIMPLE:
            yield from _simple_chunk(chunk, count)
        elif kind not in (FILE_SIGNATURE, METADATA, PADDING):
            return  # behind the file
    return


def _simple_chunk(chunk: bytes, count: int) -> Iterator[bytes]:
    """Records of a chunk: a compression, the sizes of the records, then the records."""
    compression, (length, at) = chunk[0], _varint(chunk, 1)
    sizes = _decompressed(chunk[at : at + length], compression)
    values = _decompressed(chunk[at + length :], compression)
    at, start = 0, 0
    for _ in range(count):
        size, at = _varint(sizes, at)
        yield values[start : start + size]
        start += size


def _decompressed(data: bytes, compression: int) -> bytes:
    if compression == UNCOMPRESSED:
        return data
    if compression != SNAPPY:
        raise ValueError(f"a chunk is compressed with {chr(compression)!r}; only Snappy ('s') is read here.")
    _, at = _varint(data, 0)  # the size, which Snappy says again
    return unsnap(data[at:])


def unsnap(data: bytes) -> bytes:
    """Snappy undone: pieces that are new, and copies of what came before."""
    size, at = _varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag, kind = data[at] >> 2, data[at] & 3
        at += 1
        if kind == NEW:
            extra = max(0, tag - 59)  # bytes that hold the length, where it does not fit into the tag
            length = 1 + (int.from_bytes(data[at : at + extra], "little") if extra else tag)
            out += data[at + extra : at + extra + length]
            at += extra + length
            continue
        if kind == NEAR_COPY:
            length, back, at = 4 + (tag & 7), (tag >> 3) << 8 | data[at], at + 1
        else:
            width = 2 if kind == COPY else 4
            length, back, at = 1 + tag, int.from_bytes(data[at : at + width], "little"), at + width
        piece = out[len(out) - back :][:length]
        out += (piece * (length // back + 1))[:length]  # a copy may reach into itself
    assert len(out) == size
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _elfs(data: bytes) -> Iterator[bytes]:
    """Every 64-bit ELF file in the data, up to the end of its header tables, of which one is last.

    The program that launches a kernel of Mosaic is one, with the kernel in it.
    """
    start = data.find(b"\x7fELF")
    while start >= 0:
        programs, sections = struct.unpack_from("<QQ", data, start + 32)
        program_size, program_count, section_size, section_count = struct.unpack_from(
            "<HHHH", data, start + 54
        )
        end = start + max(programs + program_size * program_count, sections + section_size * section_count)
        yield data[start:end]
        start = data.find(b"\x7fELF", start + 4)
