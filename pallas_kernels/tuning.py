"""Tile sizes of a kernel: what the caller says; else what was measured on this device; else a heuristic.

An implementation whose tiles can be measured defines `candidates(...)`, which takes what `run` takes and
gives a `Choice`; and its `run` takes `tiles=None`, one of these candidates:

    def run(x, ..., tiles=None):
        chosen = tuning.pick("scaled_matmul", "mosaic_gpu", candidates(x, ...), tiles)

What was measured lies in `tuned/<device>.json`, written by `viditq bench --tune`. It is data: deleting a file
changes no result, only times. The file also has the speeds of whole ops, see `measured`.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jax

# What kernels import and their best tiles do not depend on.
_NOT_OF_A_KERNEL = {"reference", "xla", "cases", "tuning", "measured", "dispatch"}


class Choice(NamedTuple):
    """What an implementation can choose from for some arguments.

    facts: static facts that the best tiles depend on, such as {"m": 8192, "n": 1152, "k": 1152, "epilogue":
        "gelu"}. "m" counts rows, and shares its measurement with all numbers up to the next power of two.
    candidates: tiles that fit the device and these arguments, the heuristic's own first: named tuples,
        dataclasses or dicts of numbers.
    """

    facts: Mapping[str, Any]
    candidates: Sequence[Any]


def pick(
    op: str, implementation: str, choice: Choice, explicit: Any = None, *, device: str | None = None
) -> Any:
    """The candidate to use: the explicit one, else the one that was measured, else the heuristic's.

    device: its name, that of the default device where not given. Tiles that were measured with another
    version of the kernel are not used, nor are those that do not fit these arguments.
    Raises ValueError for explicit tiles that are no candidate.
    """
    if explicit is not None:
        if explicit not in choice.candidates:
            listed = ", ".join(str(plain(tiles)) for tiles in choice.candidates)
            raise ValueError(
                f"{op}/{implementation}: tiles {plain(explicit)} were asked for, which do not fit"
                f" {dict(choice.facts)}; choose one of {listed}."
            )
        return explicit
    kernel = table(device or device_name()).get("kernels", {}).get(f"{op}/{implementation}")
    if kernel is not None and kernel["hash"] == kernel_hash(op, implementation):
        measured = kernel["entries"].get(key(choice.facts), {}).get("tiles")
        for tiles in choice.candidates:
            if plain(tiles) == measured:
                return tiles
    return choice.candidates[0]


def plain(tiles: Any) -> dict[str, Any]:
    """Tiles as they are written in a table."""
    if isinstance(tiles, Mapping):
        return dict(tiles)
    if dataclasses.is_dataclass(tiles):
        return dataclasses.asdict(tiles)  # type: ignore[arg-type]  # is_dataclass takes classes too; none is here
    return tiles._asdict()


def key(facts: Mapping[str, Any]) -> str:
    """The name of an entry of the table: "k=1152 m<=8192 n=3456"."""
    named = {name: f"{name}={value}" for name, value in facts.items()}
    if "m" in facts:
        named["m"] = f"m<={1 << max(0, int(facts['m']) - 1).bit_length()}"
    return " ".join(named[name] for name in sorted(named))


def device_name() -> str:
    """The default device as records and tables name it: "nvidia-h100-80gb-hbm3", "cpu"."""
    return slug(jax.devices()[0].device_kind)


def host_name() -> str:
    """What the processor of this machine calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def slug(name: str) -> str:
    """A name for a file: lower case, a hyphen for whatever is no letter, digit or point."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name.lower()).split())


@functools.cache
def table(device: str) -> dict[str, Any]:
    """What was measured on a device; empty where nothing was."""
    file = resources.files("pallas_kernels") / "tuned" / f"{device}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


@functools.cache
def kernel_hash(op: str, implementation: str) -> str:
    """Of the code that the best tiles may depend on: the implementation, and what of ours it imports."""
    name = f"pallas_kernels.{op}.{implementation}"
    if _file(name) is None:
        raise LookupError(f"{op} has no implementation {implementation!r}.")
    found: dict[str, bytes] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        file = _file(module)
        other = module != name and module.rpartition(".")[2] in _NOT_OF_A_KERNEL
        if file is not None and module not in found and not other:
            found[module] = file.read_bytes()
            waiting += _imported(found[module])
    digest = hashlib.sha256()
    for _, content in sorted(found.items()):
        digest.update(content)
    return digest.hexdigest()[:16]


def _imported(content: bytes) -> Iterator[str]:
    """The modules of this package that a file may import; some are names within modules."""
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pallas_kernels"):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    """The file of a module; None for a package, and for what is no module but a name in one."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.submodule_search_locations is None else None
