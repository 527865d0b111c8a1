"""Kernels in Triton's language: for NVIDIA GPUs before Hopper, where Mosaic GPU needs a newer JAX.

`product` and `rows` hold the kernels. Only they import Triton, and nothing imports them before they run: all
else works without Triton and jax-triton, which are the extra `triton`. An op describes a run of a kernel as a
`Program`. `compiled` makes that a part of what JAX traces; the tests run it in Triton's interpreter. All
sizes are constants of a kernel, so each shape is compiled for itself.
"""

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from pallas_kernels.devices import NO_GPU, default_gpu

LEAST_CAPABILITY = (8, 0)  # the first with int8 products of 16 x 8 x 32 and copies past the registers
PACKAGES = {"triton": "triton", "jax_triton": "jax-triton"}
MOST_ELEMENTS = 2**31 - 1  # of an array: places in it are int32


class Program(NamedTuple):
    """A kernel with what it reads, what it writes, and how it runs."""

    kernel: Callable[[], Any]  # gives the kernel, and imports it for that
    operands: Mapping[str, jax.Array | None]  # in the order of the kernel's parameters; it reads none of None
    results: Mapping[str, jax.ShapeDtypeStruct | None]  # likewise, the parameters after these
    blocks: int
    constants: Mapping[str, Any]
    warps: int
    stages: int = 1  # how far loops load ahead
    fuses: bool = True  # a product and the sum that takes it, into one rounding

    def arguments(self) -> list[jax.Array]:
        """The operands, with the first in the place of one that is None."""
        first = next(iter(self.operands.values()))
        assert first is not None
        return [first if each is None else each for each in self.operands.values()]

    def made(self) -> list[jax.ShapeDtypeStruct]:
        """The results, with one number in the place of one that is None."""
        nothing = jax.ShapeDtypeStruct((1,), "int32")
        return [nothing if each is None else each for each in self.results.values()]

    def named(self, results: list[jax.Array]) -> dict[str, jax.Array]:
        """The results by name, without those that are None."""
        pairs = zip(self.results.items(), results, strict=True)
        return {name: result for (name, wanted), result in pairs if wanted is not None}


Run = Callable[[Program], dict[str, jax.Array]]


def wrong_device() -> str | None:
    """Why none of the kernels runs on the default device."""
    gpu = default_gpu()
    if gpu is None:
        return NO_GPU
    if gpu.capability < LEAST_CAPABILITY:
        least, found = (".".join(map(str, each)) for each in (LEAST_CAPABILITY, gpu.capability))
        return f"it needs compute capability {least}, and {gpu.name} has {found}"
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        names = " and ".join(missing)
        return f"it needs {names}, not installed here: the extra viditq-jax[triton]"
    return None


def compiled(program: Program) -> dict[str, jax.Array]:
    """The results of a program on the default GPU, or on that of `tracing_for`, which need not be here."""
    import jax_triton

    gpu = default_gpu()
    assert gpu is not None  # unsupported has said so
    major, minor = gpu.capability
    results = jax_triton.triton_call(
        *program.arguments(),
        kernel=program.kernel(),
        out_shape=program.made(),
        grid=program.blocks,
        num_warps=program.warps,
        num_stages=program.stages,
        compute_capability=10 * major + minor,
        enable_fp_fusion=program.fuses,
        CAPABILITY=10 * major + minor,
        **program.constants,
    )
    return program.named(results)
