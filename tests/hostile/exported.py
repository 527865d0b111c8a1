"""Exported programs that were torn, altered or made on purpose: some with hashes that are right again."""

import dataclasses
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.hostile.door import table
from tests.hostile.sealed_folder import SealedFolder
from viditq_jax.export import export_pipeline, load_exported
from viditq_jax.export._folder import KIND

FACTS, PROGRAM, WEIGHTS = "program.json", "denoise.jaxexport", "weights/denoiser.safetensors"


@cache
def program() -> Path:
    """Of latents alone, from labels: nothing but one program and its weights."""
    whole = tiny.video("latte")
    alone = dataclasses.replace(whole, decoder=None, text_encoder=None, files={})
    return export_pipeline(alone, Path(mkdtemp()) / "program", batch=2)


FOLDER = SealedFolder(program, KIND, "program")
altered, facts = FOLDER.altered, FOLDER.facts


def flipped(name: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return altered(change)


def weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], Any]:
    def replace(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return altered(replace, again=True)


def calls_outside(folder: Path) -> None:
    """A program that calls, by name, what a process may have registered."""
    shape = jax.ShapeDtypeStruct((2,), np.float32)
    run = jax.export.export(
        jax.jit(jax.ffi.ffi_call("system", shape)),
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("system")],
    )
    (folder / PROGRAM).write_bytes(run(shape).serialize())


CASES = table(
    "program",
    lambda folder, out: load_exported(folder / "program"),
    {
        "a flipped byte in the program": (flipped(PROGRAM), f"{PROGRAM} was altered"),
        "a flipped byte in the weights": (flipped(WEIGHTS), f"{WEIGHTS} was altered"),
        "no weights": (altered(lambda f: (f / WEIGHTS).unlink()), f"{WEIGHTS} is missing"),
        "no program": (altered(lambda f: (f / PROGRAM).unlink()), f"{PROGRAM} is missing"),
        "neither listed": (altered(lambda f: (f / PROGRAM).unlink(), again=True), f"{PROGRAM} is missing"),
        "an extra file": (altered(lambda f: (f / "code.py").write_text("")), "code.py does not belong"),
        "a link": (altered(lambda f: (f / "more").symlink_to("/etc/passwd")), "more is a symbolic link"),
        "a truncated program": (altered(lambda f: os.truncate(f / PROGRAM, 9)), "has 9 bytes instead of"),
        "no facts": (altered(lambda f: (f / FACTS).unlink()), "is not an exported program"),
        "facts that are no JSON": (altered(lambda f: (f / FACTS).write_bytes(b"\xff")), "is not valid"),
        "facts with another hash": (
            altered(lambda f: (f / FACTS).write_text((f / FACTS).read_text().replace("cpu", "tpu"))),
            "was altered",
        ),
        "another format version": (facts(lambda x: x.update(format=2)), "has format version 2"),
        "a file outside": (
            facts(lambda x: x["files"].update({"../x": {"bytes": 0, "sha256": ""}})),
            "../x is missing",
        ),
        "a program outside": (
            facts(lambda x: x["programs"].update({"../../x": {}})),
            "does not fit together.*../../x",
        ),
        "programs that are a number": (facts(lambda x: x.update(programs=3)), "does not fit together"),
        "no batch": (facts(lambda x: x.pop("batch")), "does not fit together"),
        "a batch of a billion": (facts(lambda x: x.update(batch=10**9)), "a batch of 1000000000"),
        "a guidance that is no number": (facts(lambda x: x.update(guidance="x")), "does not fit together"),
        "a size of a billion": (facts(lambda x: x.update(size=[10**9, 10**9])), "its program takes"),
        "another model": (
            facts(lambda x: x["pipeline"]["conditions"].update(kind="prompt")),
            "does not fit together",
        ),
        "for another platform": (facts(lambda x: x.update(platforms=["cuda"])), "is for cuda, and this"),
        "for more platforms than it is": (
            facts(lambda x: x.update(platforms=["cpu", "tpu"])),
            "does not fit together",
        ),
        "a program of other shapes": (
            facts(lambda x: x["programs"]["denoise"].update(gives=["float32[1]"])),
            "takes and gives",
        ),
        "a program that is none": (
            altered(lambda f: (f / PROGRAM).write_bytes(b"garbage"), again=True),
            "is no program of JAX",
        ),
        "a program that is empty": (
            altered(lambda f: (f / PROGRAM).write_bytes(b""), again=True),
            "is no program of JAX",
        ),
        "a program that calls outside": (altered(calls_outside, again=True), "calls system, which"),
        "weights that are none": (
            altered(lambda f: (f / WEIGHTS).write_bytes(b"garbage!garbage!"), again=True),
            "not a safetensors file",
        ),
        "weights without one": (weights(lambda x: x.pop(min(x))), "is None, expected"),
        "weights of another shape": (
            weights(lambda x: x.update({min(x): np.zeros((1, 1), np.float32)})),
            "weights of denoise: .* expected",
        ),
    },
)
