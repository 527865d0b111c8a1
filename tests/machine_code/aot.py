"""Compile a JAX function for a GPU that is not there, down to its machine code.

Needs the CUDA plugin of JAX and the compiler's wheels, which `make check-kernels` installs, and
JAX_PLATFORMS=cpu, without which the plugin looks for a driver. One target a process: the assembler has been
seen to fail on a second one.
"""

import ctypes
import dataclasses
import functools
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from tests.machine_code import executable, hlo, sass
from tests.machine_code.targets import TARGETS

CUDA = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13"
# A tile of products that XLA would find by timing; where it cannot time, it takes one of 16 x 8.
GEMM_TILE = "block_m: 128 block_n: 128 block_k: 64 num_stages: 3 num_warps: 8 num_ctas: 1"
SERIALIZED = ("C7510", "C7512")  # the assembler's word that it makes each wgmma wait for the one before
_said: dict[
    bytes, str
] = {}  # by the assembler, of each GPU binary: Mosaic assembles equal kernels once a process


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its text, its GPU binaries, what the assembler said of kernels written by hand.

    It may have said it of several programs at a time.
    """

    module: hlo.Module
    cubins: tuple[bytes, ...] = dataclasses.field(repr=False)
    log: str
    temporary_bytes: int

    @property
    def code(self) -> Iterator[sass.Code]:
        """The kernels that are not library calls; equal ones may share their code.

        They are disassembled as they are asked for, half a second each.
        """
        for cubin in self.cubins:
            yield from _disassembled(cubin)

    @property
    def moved(self) -> int:
        """Bytes that all kernels read and write."""
        return sum(kernel.moved for kernel in self.module.kernels)

    @property
    def serialized(self) -> bool:
        """Whether the assembler gave up the overlap of warpgroup products."""
        return any(code in self.log for code in SERIALIZED)


@functools.cache
def _disassembled(cubin: bytes) -> list[sass.Code]:
    return sass.disassemble(cubin, CUDA / "bin")


@functools.cache
def device(target: str) -> Any:
    """A device that only compiles."""
    assert os.environ.get("JAX_PLATFORMS") == "cpu", "set JAX_PLATFORMS=cpu: there is no driver to load"
    os.environ.setdefault("MOSAIC_GPU_CUDA_ROOT", str(CUDA))
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"  # to standard output
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=TARGETS[target].description, topology="1x1x1"
    )
    return topology.devices[0]


def compile_for(target: str, fn: Callable[..., Any], *args: Any, tile: str | None) -> Program:
    """Compile fn for a target. args: pytrees of `jax.ShapeDtypeStruct`. tile: of XLA's own products."""
    compiled, log = _compiled(target, fn, args, tile)
    cubins = executable.cubins(compiled.runtime_executable().serialize())
    logs = dict.fromkeys(_said.setdefault(cubin, log) for cubin in cubins)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return Program(hlo.Module(compiled.as_text()), tuple(cubins), "".join(logs), temporary)


def _compiled(target: str, fn: Callable[..., Any], args: Any, tile: str | None) -> tuple[Any, str]:
    here = device(target)
    mesh = jax.sharding.Mesh([here], ("x",))
    on_it = functools.partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec()))
    args = jax.tree.map(lambda arg: on_it(arg.shape, arg.dtype), args)
    options = {"xla_gpu_cuda_data_dir": str(CUDA)}
    if tile is not None:
        options["xla_gpu_override_gemm_autotuner"] = tile
    with tempfile.TemporaryFile() as log:
        with jax.default_device(here), _standard_output(log.fileno()):  # Mosaic asks the device what it is
            compiled = jax.jit(fn).lower(*args).compile(compiler_options=options)
        log.seek(0)
        return compiled, log.read().decode()


@contextmanager
def _standard_output(file: int) -> Iterator[None]:
    """Send what is written to standard output meanwhile, by libraries too, to a file descriptor."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(file, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
