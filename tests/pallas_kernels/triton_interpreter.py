"""Programs in Triton's interpreter, in a process of its own: Triton reads TRITON_INTERPRET as it is imported.

`in_interpreter` is a `triton_kernels.Run`. This file is both sides: its main program reads programs from its
standard input, and writes their results to its standard output.
"""

import atexit
import functools
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install -e '.[triton]'"
)


def in_interpreter(program: Any) -> dict[str, jax.Array]:
    """The results of a program, block after block, from results that hold other numbers before."""
    message = (
        program.kernel,
        [np.asarray(each) for each in program.arguments()],
        [(each.shape, np.dtype(each.dtype)) for each in program.made()],
        program.blocks,
        dict(program.constants),
    )
    process = _interpreter()
    assert process.stdin is not None
    assert process.stdout is not None
    pickle.dump(message, process.stdin)
    process.stdin.flush()
    results = pickle.load(process.stdout)
    if isinstance(results, str):
        raise RuntimeError(results)
    return program.named([jnp.asarray(each) for each in results])


@functools.cache
def _interpreter() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pallas_kernels.triton_interpreter"],
        cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(process.kill)
    return process


class _Memory:
    """An array as the interpreter wants its arguments: like a tensor of PyTorch."""

    NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8_e4m3fn": "fp8e4nv"} | {
        f"{kind}{bits}": f"{kind[0]}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32)
    }

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.dtype = self.NAMES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def itself(self, *_: Any, **__: Any) -> "_Memory":
        return self

    def nothing(self, *_: Any, **__: Any) -> tuple[int, ...]:
        return ()

    untyped_storage = cpu = new_empty = set_ = copy_ = itself
    storage_offset = size = stride = nothing


def _exact(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """A conversion of floats that rounds to the nearest, half to even; the interpreter's own does not."""
    import ml_dtypes

    named = {
        "bf16": ml_dtypes.bfloat16,
        "fp8e4nv": ml_dtypes.float8_e4m3fn,
        "fp16": np.float16,
        "fp32": np.float32,
    }
    given, wanted = np.dtype(named[str(source)]), np.dtype(named[str(target)])
    converted = np.ascontiguousarray(data).view(given).astype(wanted)
    return converted.view(f"uint{8 * wanted.itemsize}")


def _serve() -> None:
    from triton.runtime import interpreter

    interpreter._convert_float = _exact
    np.seterr(over="ignore")  # exp of what sigmoid makes 0
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            kernel, arguments, results, blocks, constants = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        made = [np.full(shape, 77, dtype) for shape, dtype in results]
        try:
            memory = [_Memory(np.ascontiguousarray(each)) for each in (*arguments, *made)]
            kernel()[(blocks,)](*memory, CAPABILITY=0, **constants)
            answer: Any = [each.array for each in memory[len(arguments) :]]
        except Exception:
            import traceback

            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
