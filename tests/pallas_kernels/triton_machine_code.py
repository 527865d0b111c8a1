"""What jax-triton makes of a program for a GPU that is not here: PTX, then machine code by Triton's tools."""

import importlib
import importlib.util
import re
import subprocess
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from pallas_kernels.devices import Gpu, tracing_for

A100 = Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108)
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128)
GPUS = pytest.mark.parametrize("gpu", [A100, RTX4090], ids=["sm_80", "sm_89"])


class Kernel(NamedTuple):
    """One kernel of a program."""

    ptx: str
    opcodes: Counter[str]  # of the machine code: "IMMA.16832.S8.S8.SAT"
    registers: int
    spills: int  # bytes

    def count(self, opcode: str) -> int:
        """Instructions of this name, whatever follows its point."""
        return sum(n for name, n in self.opcodes.items() if name.partition(".")[0] == opcode)


def why_not() -> str | None:
    """Why jax-triton compiles nothing here."""
    if importlib.util.find_spec("triton") is None or importlib.util.find_spec("jax_triton") is None:
        return "needs triton and jax-triton: pip install -e '.[triton]'"
    try:
        importlib.import_module("jax_triton")
    except ImportError as error:  # JAX without its plugin for CUDA
        return f"jax-triton: {error}"
    return None


needs_jax_triton = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def lowered(function: Callable[..., Any], *arguments: Any, gpu: Gpu) -> Any:
    """The StableHLO module of a program for a GPU; arguments are arrays or their shapes."""
    with tracing_for(gpu):
        traced = jax.jit(lambda *given: function(*given)).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).compiler_ir()


def kernels(function: Callable[..., Any], *arguments: Any, gpu: Gpu) -> list[Kernel]:
    """The kernels in Triton that a program calls, assembled."""
    found: list[Kernel] = []

    def visit(op: Any) -> Any:
        if op.name == "stablehlo.custom_call" and "triton_kernel_call" in str(
            op.attributes["call_target_name"]
        ):
            call = zlib.decompress(op.attributes["backend_config"].value_bytes)
            text = re.search(rb"\.version[\t\n -~]*\}", call)
            assert text is not None
            found.append(_assembled(text.group().decode(), gpu))
        return advance

    from jax._src.lib.mlir import ir

    advance = ir.WalkResult.ADVANCE
    module = lowered(function, *arguments, gpu=gpu)
    module.operation.walk(visit)
    return found


def _assembled(ptx: str, gpu: Gpu) -> Kernel:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        target = "-arch=sm_{}{}".format(*gpu.capability)
        said = _output(tools / "ptxas", "-v", target, "-o", cubin.name, "/dev/stdin", given=ptx)
        listing = _output(tools / "nvdisasm", "-c", cubin.name)
    (registers,) = re.findall(r"Used (\d+) registers", said)
    opcodes = Counter(
        re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][A-Z0-9.]+)", listing, re.MULTILINE)
    )
    return Kernel(ptx, opcodes, int(registers), sum(map(int, re.findall(r"(\d+) bytes spill", said))))


def _output(*command: str | Path, given: str = "") -> str:
    """What a tool says."""
    done = subprocess.run(command, input=given, text=True, capture_output=True, check=True)
    return done.stdout + done.stderr
