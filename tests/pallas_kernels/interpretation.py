"""Kernel bodies on the CPU: interpreted with a limit of time, and lowered for a GPU that is not there."""

import contextlib
import faulthandler
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from pallas_kernels import devices

LIMIT = 600  # seconds; a kernel takes five on an idle machine


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Ends the test run if a kernel waits for ever, as it does after an error in one of its warpgroups."""
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def lowered_for_cuda(function: Callable[..., Any], *arguments: Any) -> str:
    """The StableHLO of a program for an NVIDIA GPU, with its kernels lowered to Mosaic."""
    return jax.export.export(jax.jit(function), platforms=["cuda"])(*arguments).mlir_module()


def lowered_for_tpu(function: Callable[..., Any], *arguments: Any) -> str:
    """The StableHLO of a program for a TPU, with its kernels lowered to Mosaic."""
    name = "TPU v5e"
    device = AbstractDevice(device_kind=name, num_cores=1, platform="tpu")
    with (
        devices.tracing_for(devices.Tpu(name)),
        use_abstract_mesh(AbstractMesh((), (), abstract_device=device)),
    ):
        return jax.export.export(jax.jit(function), platforms=["tpu"])(*arguments).mlir_module()
