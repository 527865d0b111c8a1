"""Whatever bytes come: a value, or an error that says what is wrong. `fuzz.py` looks for minutes."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.hostile.readers import READERS, honest, read

EXAMPLES = 40


@st.composite
def edited(draw: st.DrawFn, reader: str) -> bytes:
    """An honest input after some edits: bytes replaced, put in, left out or doubled."""
    data = draw(st.sampled_from(honest(reader)))
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        end = min(len(data), begin + draw(st.integers(0, 8)))
        new = draw(st.one_of(st.binary(max_size=8), st.sampled_from(WORDS), st.just(data[begin:end] * 2)))
        data = data[:begin] + new + data[end:]
    return data


WORDS = [
    *(
        b"NaN",
        b"-1",
        b"1e999",
        b"9" * 30,
        b"null",
        b"[[",
        b"{}",
        b'"',
        b"\0",
        b"\xff",
        b"\n",
        b"../",
        b"\x1b[",
    ),
    *(b"R", b"0", b"2", b"b", b"Q", b"(", b"t", b"\x85", b"\x93", b"s", b"."),  # opcodes of pickles
]


@pytest.mark.parametrize("reader", READERS)
def test_an_honest_input_is_read(reader: str) -> None:
    for data in honest(reader):
        assert not isinstance(read(reader, data), Exception)


@pytest.mark.parametrize("reader", READERS)
def test_any_bytes_give_a_value_or_a_clear_error(reader: str) -> None:
    @given(st.one_of(edited(reader), st.binary(max_size=100)))
    @settings(max_examples=EXAMPLES, deadline=None, database=None)
    def refused_or_read(data: bytes) -> None:
        found = read(reader, data)
        if isinstance(found, Exception):
            assert str(found).strip()

    refused_or_read()
