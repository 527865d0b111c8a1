"""Where the time of a program goes: the profiler's times of its HLO operations, by what they are of.

An operation belongs to the op of `pallas_kernels` in whose scope it was traced; else it is a product, if it
is a dot or a convolution, or one of XLA's libraries; else it is elementwise, if it is a loop over numbers.
A fusion belongs where its last operation does. Times of threads that run side by side add up.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

KINDS = ("matmul", "attention", "quantize", "elementwise", "other")
_OPS = {
    "attention": "attention",
    "scaled_matmul": "matmul",
    "packed_matmul": "matmul",
    "quantize_rows": "quantize",
    "hadamard": "quantize",
}
_PRODUCT = re.compile(r"/(dot_general|conv_general_dilated)\b|= \S+ (dot|convolution)\(|gemm|conv")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*)$")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CONTAINER = re.compile(r" (while|call|conditional)\(")  # a loop, and what it runs
_LOOP = re.compile(r"kind=k(Loop|Input)|\b(fusion|copy|transpose|reduce|broadcast|convert)\(")


def shares(launch: Callable[[int], Any], compiled: Any, *, runs: int = 3) -> dict[str, float]:
    """The share of each of KINDS in the time of a compiled program; they sum to 1.

    launch: runs it on input i. Empty where the profiler saw none of its operations.
    """
    kinds = {name: kind(text) for name, text in instructions(compiled.as_text()).items()}
    spent: dict[str, float] = defaultdict(float)
    for name, duration in durations(launch, runs).items():
        if of := kinds.get(name):
            spent[of] += duration
    total = sum(spent.values())
    return {each: round(spent[each] / total, 4) for each in KINDS} if total else {}


def instructions(hlo: str) -> dict[str, str]:
    """The text of each instruction of a program, by its name."""
    found = (_INSTRUCTION.match(line) for line in hlo.splitlines())
    return {match[1]: match[0] for match in found if match}


def kind(instruction: str) -> str | None:
    """What an instruction is of, one of KINDS; None where its time is that of other instructions."""
    if _CONTAINER.search(instruction):
        return None
    named = _OP_NAME.search(instruction)
    scopes = named[1].split("/") if named else []
    for scope in reversed(scopes):
        if scope in _OPS:
            return _OPS[scope]
    if _PRODUCT.search(instruction):
        return "matmul"
    return "elementwise" if _LOOP.search(instruction) else "other"


def durations(launch: Callable[[int], Any], runs: int) -> dict[str, float]:
    """Microseconds by the name of the instruction, from the profiler's trace of some runs."""
    jax.block_until_ready(launch(0))
    found: dict[str, float] = defaultdict(float)
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for i in range(runs):
                jax.block_until_ready(launch(i))
        for file in Path(folder).rglob("*.trace.json.gz"):
            for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]:
                name = event.get("args", {}).get("hlo_op")
                if event.get("ph") == "X" and name:
                    found[name] += event["dur"]
    return dict(found)
