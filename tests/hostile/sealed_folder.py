"""Copies of a folder that lists its files and hashes, altered: some with hashes that are right again."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from viditq_jax import sealed

Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SealedFolder:
    """make: gives the folder to copy. kind: what it is. name: of the copies."""

    make: Callable[[], Path]
    kind: sealed.Kind
    name: str

    def altered(self, change: Callable[[Path], Any], *, again: bool = False) -> Callable[[Path], Any]:
        """A copy after a change; again: sealed once more, with hashes that fit."""

        def make(folder: Path) -> None:
            copy = folder / self.name
            shutil.copytree(self.make(), copy)
            change(copy)
            if again:
                self.seal(copy, lambda facts: None)

        return make

    def seal(self, folder: Path, change: Callable[[Facts], Any]) -> None:
        """Seal a copy with other facts."""
        file = folder / self.kind.facts
        facts = json.loads(file.read_text())
        del facts["sha256"]
        facts["files"] = sealed.listing(folder, self.kind)
        change(facts)
        file.write_text(json.dumps({**facts, "sha256": sealed.digest(facts)}))

    def facts(self, change: Callable[[Facts], Any]) -> Callable[[Path], Any]:
        """A copy with other facts, whose hashes are right."""
        return self.altered(lambda folder: self.seal(folder, change))
