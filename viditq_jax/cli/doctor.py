"""Say what this machine will do with a model, before it is loaded: viditq doctor -m default --recipe w8a8

Devices and versions; which implementation computes each op, and why no other; the memory of the weights, and
with --compile that of the programs. The exit code is 1 where the weights do not fit on the device.
"""

import dataclasses
from typing import Annotated, Any

import tyro

from viditq_jax import doctor
from viditq_jax.bench.device import header
from viditq_jax.cli._common import working
from viditq_jax.load import describe
from viditq_jax.quant.recipe import load_recipe


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq doctor`."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "default"
    """An artifact, a checkpoint, "default" or "default-video"."""
    recipe: str | None = None
    """As if quantized with it: a packaged recipe, or a JSON file."""
    batch: int = 8
    """Samples computed together."""
    compile: bool = False
    """Compile the programs as well, to learn what memory they need."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Look, and say. Raises MemoryError where the weights do not fit."""
    with working("reading the model's facts"):
        pipeline = describe(options.model, load_recipe(options.recipe) if options.recipe else None)
    with working("compiling" if options.compile else "tracing a step"):
        found: dict[str, Any] = {
            **header(),
            "devices": doctor.devices(),
            "model": pipeline.facts["denoiser"]["model"],
            "recipe": pipeline.recipe.name if pipeline.recipe else None,
            "batch": options.batch,
            "kernels": doctor.kernels(pipeline, options.batch),
            "memory": doctor.memory(pipeline, options.batch, compiled=options.compile),
            "bfloat16_denoiser_bytes": doctor.bfloat16_bytes(pipeline.denoiser),
        }
    if options.json:
        return found
    if (limit := found["devices"][0].get("bytes")) and (need := sum(found["memory"].values())) > limit:
        print(_text(found))
        raise MemoryError(
            f"{options.model} needs {need / 1e9:.1f} GB, and {found['devices'][0]['kind']} has"
            f" {limit / 1e9:.1f} GB; choose a recipe with fewer bits, or a smaller batch."
        )
    return _text(found)


def _text(found: dict[str, Any]) -> str:
    lines = [f"{'device':<11}{_device(each)}" for each in found["devices"]]
    lines.append(f"{'host':<11}{found['host']}, Python {found['python']}")
    lines.append(f"{'versions':<11}" + ", ".join(f"{k} {v}" for k, v in found["versions"].items()))
    recipe = found["recipe"] or "floats"
    lines += ["", f"{found['model']}, {recipe}, batch of {found['batch']}: what computes each op of a step"]
    for each in found["kernels"]:
        sizes = " ".join("x".join(map(str, shape)) for shape in each["shapes"][:2])
        how = "measured fastest" if each["measured"] else "first that can"
        lines.append(f"  {each['op']:<15}{sizes:<24}{each['calls']:>4} x  {each['implementation']} ({how})")
    if not found["kernels"]:
        lines.append("  all by XLA: no layer is quantized")
    for (op, other), reason in _reasons(found["kernels"]).items():
        lines.append(f"  not {other} for {op}: {reason}")
    lines += ["", "memory"]
    lines += [f"  {name:<15}{size / 1e6:>10.2f} MB" for name, size in found["memory"].items()]
    dense, stored = found["bfloat16_denoiser_bytes"], found["memory"]["denoiser"]
    lines.append(f"  the denoiser is {stored / dense:.3f}x of its bfloat16 size, {dense / 1e6:.2f} MB")
    if "sampling loop" not in found["memory"]:
        lines.append("  what the programs need beside this: --compile asks the compiler")
    return "\n".join(lines)


def _device(entry: dict[str, Any]) -> str:
    total = f", {entry['bytes'] / 1e9:.1f} GB" if "bytes" in entry else ""
    return f"{entry['kind']} ({entry['platform']}){total}"


def _reasons(kernels: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """One reason for each implementation that computes no call of an op, and could not."""
    used = {(each["op"], each["implementation"]) for each in kernels}
    found = {
        (each["op"], other): reason
        for each in kernels
        for other, reason in each["others"].items()
        if reason is not None
    }
    return {key: reason for key, reason in found.items() if key not in used}
