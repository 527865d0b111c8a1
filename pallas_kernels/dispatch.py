"""Picks an implementation of an op, and explains why when none fits.

An implementation is a file in the op's folder with two functions that take the arguments of the op:
`unsupported(...)`, a reason why it cannot compute them here, or None; and `run(...)`. Adding the file is all.
A file whose name begins with an underscore is none: what the implementations of one op share.
"""

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from pallas_kernels import measured

REFERENCE = "reference"
FALLBACK = "xla"  # fits everywhere, so it is asked last
_NOT_IMPLEMENTATIONS = {REFERENCE, FALLBACK, "cases"}


class UnsupportedError(ValueError):
    """No implementation, or not the one that was asked for, can compute these arguments on this device."""


def implementations(op: str) -> list[str]:
    """The implementations of an op in the order in which they are asked; the reference is not among them."""
    folder = importlib.import_module(f"pallas_kernels.{op}").__path__
    files = {item.name for item in pkgutil.iter_modules(folder) if not item.name.startswith("_")}
    return [*sorted(files - _NOT_IMPLEMENTATIONS), FALLBACK]


def explain(op: str, *args: Any, **kwargs: Any) -> dict[str, str | None]:
    """For each implementation, why it cannot compute these arguments, or None where it can."""
    return {name: _module(op, name).unsupported(*args, **kwargs) for name in implementations(op)}


def run(op: str, implementation: str | None, *args: Any, **kwargs: Any) -> Any:
    """Compute an op.

    implementation: None takes, of those that can, the one that was measured to be fastest near these sizes on
    this device; where that is not known, the first. A name, or "reference", is a promise: that one computes
    it.
    Raises UnsupportedError with every reason if none can, and LookupError for an unknown name.
    """
    if implementation is None:
        reasons = explain(op, *args, **kwargs)
        if fitting := [name for name, reason in reasons.items() if reason is None]:
            name = measured.fastest(op, args, fitting) or fitting[0]
            return _module(op, name).run(*args, **kwargs)
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UnsupportedError(f"no implementation of {op} can compute this: {listed}.")
    known = [*implementations(op), REFERENCE]
    if implementation not in known:
        raise LookupError(f"{op} has no implementation {implementation!r}; choose one of {', '.join(known)}.")
    module = _module(op, implementation)
    if implementation != REFERENCE and (reason := module.unsupported(*args, **kwargs)) is not None:
        raise UnsupportedError(f"{op}: implementation {implementation!r} was asked for, but {reason}.")
    return module.run(*args, **kwargs)


def _module(op: str, name: str) -> ModuleType:
    return importlib.import_module(f"pallas_kernels.{op}.{name}")
