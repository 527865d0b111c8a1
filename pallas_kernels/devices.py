"""Which device the programs that are traced now are for.

`unsupported` asks `default_gpu` or `default_tpu`; a kernel body and its launch never do, so that they lower
on a machine without one: `tracing_for` names a device that is not here. No kernel language is imported, so
that a program which uses none of them starts at once.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

NO_GPU = "it needs an NVIDIA GPU, and the default device is none"
NO_TPU = "the default device is no TPU"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as kernels see it: name, compute capability as (major, minor), and streaming multiprocessors."""

    name: str
    capability: tuple[int, int]
    cores: int


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A TPU as kernels see it."""

    name: str


def default_device() -> Any:
    """The device on which JAX places arrays by default."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None or isinstance(device, str):
        device = jax.local_devices(backend=device)[0]
    return device


@dataclasses.dataclass(frozen=True)
class Portable:
    """Any device, by what XLA alone compiles there: no kernel and no machine code of this project, so that a
    program runs in processes that know none of them. cpu: whether CPUs are all that it is for.
    """

    cpu: bool = False


_other: ContextVar[Gpu | Tpu | Portable | None] = ContextVar("other", default=None)


def for_cpu() -> bool:
    """Whether programs traced now are for CPUs alone."""
    other = _other.get()
    return other.cpu if isinstance(other, Portable) else other is None and default_device().platform == "cpu"


def portable() -> bool:
    """Whether programs traced now are for processes without kernels of this project."""
    return isinstance(_other.get(), Portable)


def target() -> Gpu | Tpu | Portable | None:
    """The device of `tracing_for`; None outside of it."""
    return _other.get()


@contextmanager
def tracing_for(device: Gpu | Tpu | Portable) -> Iterator[None]:
    """What is traced inside, to be exported or compiled elsewhere, is for a device that need not be here.

    A function that jax.jit has traced already is not traced again.
    """
    token = _other.set(device)
    try:
        yield
    finally:
        _other.reset(token)


def default_gpu() -> Gpu | None:
    """The device on which JAX places arrays by default, if it is an NVIDIA GPU; or that of `tracing_for`."""
    if (other := _other.get()) is not None:
        return other if isinstance(other, Gpu) else None
    device = default_device()
    if device.platform not in ("gpu", "cuda"):
        return None
    capability = str(getattr(device, "compute_capability", ""))
    major, point, minor = capability.partition(".")
    if not (point and major.isdigit() and minor.isdigit()):  # AMD writes gfx942
        return None
    return Gpu(device.device_kind, (int(major), int(minor)), device.core_count)


def default_tpu() -> Tpu | None:
    """The device on which JAX places arrays by default, if it is a TPU; or that of `tracing_for`."""
    if (other := _other.get()) is not None:
        return other if isinstance(other, Tpu) else None
    device = default_device()
    return Tpu(device.device_kind) if device.platform == "tpu" else None
