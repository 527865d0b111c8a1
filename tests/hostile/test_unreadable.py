"""A file that may not be read is an error that names it, at every door."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from converters.sources import open_source
from viditq_jax.calibrate import load_stats
from viditq_jax.conditions import prompts_in
from viditq_jax.generate import Manifest
from viditq_jax.load import load_pipeline
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.search.table import Table

NOBODY = 65534
DOORS: dict[str, Callable[[Path], Any]] = {
    "r.json": load_recipe,
    "p.txt": prompts_in,
    "s": load_stats,
    "t.jsonl": Table.read,
    "generation.json": lambda file: Manifest.read(file.parent),
    "pipeline.json": lambda file: load_pipeline(file.parent),
    "x.safetensors": open_source,
    "x.pth": open_source,
}


@contextmanager
def forbidden(file: Path) -> Iterator[None]:
    """Nobody may read the file; and this process, which the system lets do anything as root, is not root."""
    user = os.geteuid()
    file.chmod(0)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)
        file.chmod(0o644)


@pytest.mark.parametrize("name", DOORS)
def test_a_file_that_may_not_be_read_is_named(name: str, tmp_path: Path) -> None:
    (file := tmp_path / name).write_bytes(b"PK" if name == "x.pth" else b"{}")
    tmp_path.chmod(0o755)
    load_recipe("w8a8")  # imports what may lie where nobody reads
    with forbidden(file), pytest.raises((OSError, ValueError), match="Permission denied") as caught:
        DOORS[name](file)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
