"""A hostile input: how it is made, the door that it comes to, and what is said of it there."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

CANARY = "it-ran"  # what a payload makes, beside its input


@dataclasses.dataclass(frozen=True)
class Case:
    """make: writes the input into an empty folder. enter: opens what lies there; gets the folder, and a place
    for results. says: words of the error. lines: whether the error may list faults on several lines.
    """

    name: str
    make: Callable[[Path], Any]
    enter: Callable[[Path, Path], Any]
    says: str
    lines: bool = False


def table(
    prefix: str,
    enter: Callable[[Path, Path], Any],
    rows: dict[str, tuple[Callable[[Path], Any], str]],
    *,
    lines: bool = False,
) -> list[Case]:
    """Cases of one door, by name: how the input is made, and what is said of it."""
    return [Case(f"{prefix}: {name}", make, enter, says, lines) for name, (make, says) in rows.items()]


def written(name: str, content: bytes | str) -> Callable[[Path], Any]:
    """An input that is one file."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)
