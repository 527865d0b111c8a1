"""Folders that list their files: facts as JSON, with size and sha256 of every other file and of themselves.

The facts are written last, and reading them checks all of it, so that whatever was torn or altered is one
error that names the files. The hashes are for accidents: they do not say who made a folder.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from viditq_jax.files import write_atomic, writing_folder

_BLOCK = 1 << 22  # bytes read at once while hashing
_MOST_BYTES = 1 << 26  # of the facts


class ArtifactError(ValueError):
    """A folder of this library that cannot be read or written as asked."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a folder is: what it is called, its file of facts, its format version, and how one is made."""

    noun: str  # with its article
    facts: str
    version: int
    make: str  # ends "... with `viditq convert`"
    again: str  # after a fault: "make the artifact again from its source"


def listing(folder: Path, kind: Kind) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file but that of the facts, by its name in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / kind.facts)
    return {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files
    }


def digest(facts: dict[str, Any]) -> str:
    """The sha256 of facts, of their content and not of their spacing."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_free(path: Path, kind: Kind, *, overwrite: bool) -> None:
    """Raise ArtifactError where a folder may not be written: over another, unless `overwrite`; over what is
    no folder of this kind, never; and below what is no folder, or may not be written to.
    """
    if not path.exists():
        above = next(each for each in path.absolute().parents if each.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            why = "may not be written to" if above.is_dir() else "is a file"
            raise ArtifactError(f"{path} cannot be made: {above} {why}; choose another name.")
        return
    if not overwrite:
        raise ArtifactError(f"{path} exists already; choose another name, or ask to overwrite it.")
    if not (path / kind.facts).is_file():
        raise ArtifactError(f"{path} exists and is not {kind.noun} (no {kind.facts}); it is not overwritten.")


@contextlib.contextmanager
def writing(path: Path, kind: Kind, facts: dict[str, Any], *, overwrite: bool) -> Iterator[Path]:
    """A folder to fill, which is sealed with the facts and appears under its name at the end of the block.

    Raises ArtifactError as `check_free` does, and if the disk refuses; then nothing half-written is left
    behind, and what was there stays untouched.
    """
    check_free(path, kind, overwrite=overwrite)
    try:
        with writing_folder(path, overwrite=overwrite) as partial:
            yield partial
            sealed = {"format": kind.version, **facts, "files": listing(partial, kind)}
            text = json.dumps({**sealed, "sha256": digest(sealed)}, indent=1) + "\n"
            write_atomic(partial / kind.facts, text)
    except OSError as error:
        raise ArtifactError(
            f"{path} could not be written ({error}); nothing was changed. Free some space, or check the "
            f"permissions of {path.parent}, and run again."
        ) from error


def read(path: Path, kind: Kind) -> dict[str, Any]:
    """The facts of a folder, after every one of its files has been checked against its size and sha256.

    Raises ArtifactError, which names the files, if it is torn, altered or of another format version.
    """
    file = path / kind.facts
    name = kind.noun.split()[-1]
    if not file.is_file():
        raise ArtifactError(f"{path} is not {kind.noun}: it has no {kind.facts}. Make one {kind.make}.")
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes, and no honest one has {_MOST_BYTES}")
        facts = json.loads(file.read_text(encoding="utf-8"))
        version, files, sha256 = facts["format"], facts["files"], facts.pop("sha256")
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ArtifactError(
            f"{file} is not valid ({type(error).__name__}: {error}); make the {name} again."
        ) from error
    if version != kind.version:
        raise ArtifactError(
            f"{path} has format version {version!r}, this library reads {kind.version}; "
            f"{kind.again}, or install the version of viditq-jax that wrote it."
        )
    if sha256 != digest(facts):
        raise ArtifactError(f"{file} was altered (its sha256 differs); {kind.again}.")
    if faults := _faults(path, kind, expected):
        again = kind.again[0].upper() + kind.again[1:]
        raise ArtifactError(f"{path} is torn or altered: {'; '.join(faults)}. {again}.")
    return facts


def _faults(path: Path, kind: Kind, expected: dict[str, tuple[int, str]]) -> list[str]:
    found = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()} - {kind.facts}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - found)]
    faults += [  # what they lead to is not listed, and so not checked
        f"{link.relative_to(path).as_posix()} is a symbolic link"
        for link in sorted(path.rglob("*"))
        if link.is_symlink()
    ]
    faults += [f"{name} does not belong to it" for name in sorted(found - expected.keys())]
    for name in sorted(found & expected.keys()):
        size, sha256 = expected[name]
        if (path / name).stat().st_size != size:
            faults.append(f"{name} has {(path / name).stat().st_size} bytes instead of {size}")
        elif _sha256(path / name) != sha256:
            faults.append(f"{name} was altered (its sha256 differs)")
    return faults


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()
