"""What was found for a target, as a file: the ceiling of later runs, and the source of the support table."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "benchmarks" / "records"
VERSIONS = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cuda-nvcc")


def machine_code(target: str) -> dict[str, Any]:
    """The recorded findings of a target: {section: {name: finding}}, and how they were made."""
    return json.loads(_path(target).read_text(encoding="utf-8"))


def _path(target: str) -> Path:
    return FOLDER / f"machine-code-{target}.json"


class Record:
    """The recorded findings of a target, and those of this run.

    writing: this run makes the record, so it is compared with itself.
    """

    def __init__(self, target: str, *, writing: bool):
        self.path, self.writing = _path(target), writing
        self.known = {} if writing else machine_code(target)
        self.found: dict[str, dict[str, Any]] = {}

    def compare(self, section: str, name: str, finding: Any) -> Any:
        """Note a finding; returns the recorded one."""
        self.found.setdefault(section, {})[name] = finding
        if self.writing:
            return finding
        known = self.known.get(section, {})
        assert name in known, f"{self.path.name} has no {section} {name!r}: run `make record-kernels`"
        return known[name]

    def write(self, device: str) -> None:
        """Replace the file."""
        versions = {name: metadata.version(name) for name in VERSIONS}
        content = {"device": device, "how": "compiled, not run", "versions": versions, **self.found}
        self.path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
