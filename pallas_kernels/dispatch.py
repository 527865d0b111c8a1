"""Picks an implementation of an op, and explains why when none fits.

An implementation is a file in the op's folder with two functions that take the arguments of the op:
`unsupported(...)`, a reason why it cannot compute them here, or None; and `run(...)`. Adding the file is all.
A file whose name begins with an underscore is none: what the implementations of one op share.
"""

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_kernels import devices, measured

REFERENCE = "reference"
FALLBACK = "xla"  # fits everywhere, so it is asked last
_FOR_GPUS = {"mosaic_gpu", "triton", "cudnn"}  # of NVIDIA; their languages take a while to import
_NOT_IMPLEMENTATIONS = {REFERENCE, FALLBACK, "cases"}


class UnsupportedError(ValueError):
    """No implementation, or not the one that was asked for, can compute these arguments on this device."""


class Choice(NamedTuple):
    """What computes an op of these sizes: an implementation, and why each other one cannot, or None if it
    could. measured: it was the fastest on this device; else the first that can.
    """

    op: str
    shapes: tuple[tuple[int, ...], ...]  # of the arrays
    implementation: str
    others: dict[str, str | None]
    measured: bool


_listening: ContextVar[list[Choice] | None] = ContextVar("_listening", default=None)


@contextlib.contextmanager
def choices() -> Iterator[list[Choice]]:
    """The choices that are made meanwhile, as ops are called or traced."""
    found: list[Choice] = []
    token = _listening.set(found)
    try:
        yield found
    finally:
        _listening.reset(token)


def implementations(op: str) -> list[str]:
    """The implementations of an op in the order in which they are asked; the reference is not among them."""
    folder = importlib.import_module(f"pallas_kernels.{op}").__path__
    files = {item.name for item in pkgutil.iter_modules(folder) if not item.name.startswith("_")}
    return [*sorted(files - _NOT_IMPLEMENTATIONS), FALLBACK]


def explain(op: str, *args: Any, **kwargs: Any) -> dict[str, str | None]:
    """For each implementation, why it cannot compute these arguments, or None where it can."""
    return {name: _unsupported(op, name, args, kwargs) for name in implementations(op)}


def _unsupported(op: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why an implementation cannot; one that is for other devices by its name is not even imported."""
    if name in _FOR_GPUS and devices.default_gpu() is None:
        return devices.NO_GPU
    if name == "tpu" and devices.default_tpu() is None:
        return devices.NO_TPU
    reason: str | None = _module(op, name).unsupported(*args, **kwargs)
    return reason


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
            fastest = measured.fastest(op, args, fitting)
            name = fastest or fitting[0]
            if (heard := _listening.get()) is not None:
                shapes = tuple(a.shape for a in args if hasattr(a, "shape"))
                others = {other: reason for other, reason in reasons.items() if other != name}
                heard.append(Choice(op, shapes, name, others, fastest is not None))
            return _run(op, name, args, kwargs)
        listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UnsupportedError(f"no implementation of {op} can compute this: {listed}.")
    known = [*implementations(op), REFERENCE]
    if implementation not in known:
        raise LookupError(f"{op} has no implementation {implementation!r}; choose one of {', '.join(known)}.")
    if implementation != REFERENCE and (reason := _unsupported(op, implementation, args, kwargs)) is not None:
        raise UnsupportedError(f"{op}: implementation {implementation!r} was asked for, but {reason}.")
    return _run(op, implementation, args, kwargs)


def _run(op: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, structure = jax.tree.flatten((args, kwargs))
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return _module(op, name).run(*args, **kwargs)
    is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]
    arrays = [leaf if array else None for leaf, array in zip(leaves, is_array, strict=True)]
    rest = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    return _traced(arrays, op=op, name=name, structure=structure, rest=rest, target=devices.target())


@partial(jax.jit, static_argnames=("op", "name", "structure", "rest", "target"))
def _traced(
    arrays: list[Any], *, op: str, name: str, structure: Any, rest: tuple[Any, ...], target: Any
) -> Any:
    """An op inside a program: the layers of a model that call it alike share one trace, and one function in
    what is compiled, where XLA puts it back in place.

    arrays, rest: the leaves of its arguments, each in one of the two and None in the other. target: of
    `tracing_for`, by which kernels choose.
    """
    leaves = [other if array is None else array for array, other in zip(arrays, rest, strict=True)]
    args, kwargs = jax.tree.unflatten(structure, leaves)
    with jax.named_scope(op):  # a profile tells by it what an operation is of
        return _module(op, name).run(*args, **kwargs)


def _module(op: str, name: str) -> ModuleType:
    return importlib.import_module(f"pallas_kernels.{op}.{name}")
