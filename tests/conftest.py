"""Memory of the test run: what JAX compiled for one file is of no use to the next."""

import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

MOST_BYTES = 2 << 30
_PAGE = 4096


def resident_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    file = Path("/proc/self/statm")
    return _PAGE * int(file.read_text().split()[1]) if file.is_file() else 0


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """After a file, programs are dropped if there are many; what stays is no business of the collector.

    Every collection would walk all programs that live: the last files of a run took twice their time.
    """
    yield
    if resident_bytes() > MOST_BYTES:
        gc.unfreeze()
        jax.clear_caches()
        gc.collect()
    gc.freeze()
