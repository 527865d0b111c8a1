"""Show an artifact, a checkpoint or a recipe: viditq inspect runs/w8a8 --layers

With --export FILE.safetensors the denoiser is written under the names of the original PyTorch code, and its
config as FILE.json beside it: viditq convert FILE.safetensors --config FILE.json reads both.
"""

import dataclasses
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tyro

from converters import export, save_safetensors
from pallas_kernels.tuning import device_name
from viditq_jax.cli._common import working
from viditq_jax.files import write_json
from viditq_jax.load import config_from_json, load_pipeline
from viditq_jax.pipeline import Pipeline
from viditq_jax.plugins import find
from viditq_jax.quant.attention import TOKENS, attentions
from viditq_jax.quant.qweight import quantized_part
from viditq_jax.quant.ranges import ByRange, PerRange
from viditq_jax.quant.recipe import Recipe, load_recipe
from viditq_jax.quant.size import weight_bytes
from viditq_jax.speed import layer_speeds, slower, slower_text


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq inspect`."""

    what: Annotated[str, tyro.conf.Positional] = "default"
    """An artifact, a checkpoint, "default", "default-video", or a recipe."""
    layers: bool = False
    """List every linear layer of the denoiser, and the attention modules that can have 8 bits."""
    speed: bool = False
    """List what each quantized layer takes on this device beside its float form, where that was measured."""
    batch: int = 1
    """Samples at once, for --speed."""
    export: Path | None = None
    """Write the float denoiser to this .safetensors file."""
    format: str = "original"
    """Names of the exported tensors: original or diffusers."""
    json: bool = False
    """Print the result as JSON."""


def run(options: Options) -> Any:
    """Describe, and export if asked."""
    packaged = resources.files("viditq_jax.assets") / "recipes" / f"{options.what}.json"
    if packaged.is_file() or (options.what.endswith(".json") and not options.what.endswith(".index.json")):
        if options.export or options.layers or options.speed:
            raise ValueError(f"{options.what} is a recipe; --layers, --speed and --export need a model.")
        recipe = load_recipe(options.what)
        return recipe.to_json() if options.json else _recipe_text(options.what, recipe)
    for file in (options.export, options.export.with_suffix(".json")) if options.export else ():
        if file.exists():
            raise ValueError(f"{file} exists already; choose another --export.")
    with working("loading"):
        pipeline = load_pipeline(options.what)
    if options.export:
        _export(pipeline, options.export, options.format)
    facts = _facts(pipeline, options.layers)
    if options.speed:
        facts["speed"] = _speed(pipeline, options.batch)
    return facts if options.json else _text(facts)


def _facts(pipeline: Pipeline, layers: bool) -> dict[str, Any]:
    parts = {
        name: {
            "model": pipeline.facts[name]["model"],
            "bytes": net.nbytes(),
            "parameters": _parameters(net.weights()),
        }
        for name, net in pipeline.nets().items()
    }
    facts: dict[str, Any] = {
        "source": pipeline.facts.get("source"),
        "dtype": pipeline.facts["dtype"],
        "image_size": list(pipeline.image_size),
        "frames": pipeline.frames,
        "fps": pipeline.fps,
        "sampler": pipeline.facts["sampler"],
        "guidance": pipeline.facts["guidance"],
        "parts": parts,
        "recipe": pipeline.recipe.to_json() if pipeline.recipe else None,
    }
    sizes = weight_bytes(pipeline.denoiser)
    if sizes:
        facts["quantized"] = {
            "layers": len(sizes),
            "weight_bytes": sum(row.stored for row in sizes.values()),
            "bfloat16_weight_bytes": sum(row.dense for row in sizes.values()),
        }
    if layers:
        audited = pipeline.facts.get("layers", {})
        facts["layers"] = {
            path: {"what": _weight_text(weight), **audited.get(path, {})}
            for path, weight in pipeline.denoiser.weights().items()
        } | {
            path: {"what": f"queries and keys {'float' if bits is None else TOKENS}"}
            for path, bits in attentions(pipeline.denoiser).items()
        }
    return facts


def _speed(pipeline: Pipeline, batch: int) -> dict[str, Any]:
    speeds = layer_speeds(pipeline, batch=batch)
    if not speeds:
        raise ValueError("no layer of this denoiser is quantized; --speed compares quantized layers.")
    layers = [{**dataclasses.asdict(each), "ratio": each.ratio} for each in speeds]
    known = [each for each in speeds if each.ratio is not None]
    if not known:
        says = f"not measured on {device_name()}: run viditq bench --tune --parts ops on this machine"
    elif worse := slower(speeds):
        says = slower_text(worse, batch)
    else:
        says = f"no layer is slower than in floats on {device_name()} at a batch of {batch}"
    return {"device": device_name(), "batch": batch, "says": says, "layers": layers}


def _speed_lines(speed: dict[str, Any]) -> list[str]:
    lines = [f"{'layer':<34} {'rows':>6} {'inputs':>6} {'outputs':>7} {'us':>9} {'float us':>9} {'ratio':>6}"]
    for layer in speed["layers"]:
        times = "not measured" if layer["ratio"] is None else (
            f"{1e6 * layer['seconds']:9.1f} {1e6 * layer['float_seconds']:9.1f} {layer['ratio']:5.2f}x"
            f" {layer['implementation']}"
        )  # fmt: skip
        lines.append(f"{layer['layer']:<34} {layer['rows']:>6} {layer['k']:>6} {layer['n']:>7} {times}")
    return [*lines, speed["says"]]


def _parameters(weights: dict[str, Any]) -> int:
    """Elements of all linear weights; a quantized one counts the elements that it stands for."""
    return sum(w.shape[0] * w.shape[1] for w in weights.values())


def _weight_text(weight: Any) -> str:
    if isinstance(weight, ByRange):
        ranges = {number: [r for r, n in enumerate(weight.index) if n == number] for number in weight.index}
        texts = (f"in ranges {ranges[number]} {_weight_text(weight.values[number])}" for number in ranges)
        return "; ".join(texts)
    part = quantized_part(weight)
    if part is None:
        return f"{weight.dtype} {list(weight.shape)}"
    times = f"{len(part.weight.values)} x " if isinstance(weight, PerRange) else ""
    return f"{times}{part.weight.spec} {list(weight.shape)}" + (f", input {part.act}" if part.act else "")


def _text(facts: dict[str, Any]) -> str:
    lines = [
        f"{name:<13} {part['model']:<16} {part['parameters'] / 1e6:8.2f} M in linear layers "
        f"{part['bytes'] / 1e6:9.2f} MB"
        for name, part in facts["parts"].items()
    ]
    sampler = facts["sampler"]
    what, size = "pictures", "{}x{}".format(*facts["image_size"])
    if facts["frames"]:
        what, size = "videos", f"{facts['frames']} frames of {size}, {facts['fps']:g} a second"
    lines.append(
        f"{what:<13} {size}, {sampler['steps']} steps of "
        f"{sampler['name']}, guidance {facts['guidance']['scale']}, {facts['dtype']}"
    )
    if "quantized" in facts:
        q = facts["quantized"]
        lines.append(
            f"quantized     {q['layers']} layers, {q['bfloat16_weight_bytes'] / 1e6:.2f} MB in bfloat16 "
            f"-> {q['weight_bytes'] / 1e6:.2f} MB ({q['weight_bytes'] / q['bfloat16_weight_bytes']:.3f}x)"
        )
    for path, layer in facts.get("layers", {}).items():
        lines.append(f"{path:<34} {layer['what']}")
        if layer.keys() >= _AUDITED:
            lines.append("    " + _audit_text(layer))
    lines += _speed_lines(facts["speed"]) if "speed" in facts else []
    return "\n".join(lines)


_AUDITED = {
    "rule", "why", "prepare", "rounding", "low_rank", "folded", "bytes", "bfloat16_bytes", "incoherence",
    "input_incoherence", "weight_error",
}  # fmt: skip


def _audit_text(layer: dict[str, Any]) -> str:
    """A quantized layer in a line: rule, transforms, bytes, incoherence before and after, error."""
    before, after = (_figure(value) for value in layer["input_incoherence"])
    inputs = "" if before is None else f", input {before} -> {after or 'rotated, measured by evaluate'}"
    return (
        f"rule {layer['rule']}: {_steps(layer)}{' (balance folded)' if layer['folded'] else ''}; "
        f"{layer['bytes']} bytes ({layer['bytes'] / layer['bfloat16_bytes']:.3f}x); incoherence: weight "
        f"{layer['incoherence'][0]:.1f} -> {layer['incoherence'][1]:.1f}{inputs}; weight error "
        f"{100 * layer['weight_error']:.2f}%. {layer['why']}"
    )


def _steps(rule: dict[str, Any]) -> str:
    """What is done to inputs and weight, in order."""
    return " + ".join(
        [*rule["prepare"], rule["rounding"], *([f"rank {rule['low_rank']}"] if rule["low_rank"] else [])]
    )


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _recipe_text(name: str, recipe: Recipe) -> str:
    lines = [f"{name}: {recipe.source}"]
    facts = {"ranges": recipe.ranges, "tuning": recipe.tuning, "correction": recipe.correction}
    lines += [f"  {fact}: {value}" for fact, value in facts.items() if value]
    for rule in recipe.to_json()["rules"]:
        steps = f", {_steps(rule)}" if rule["weight"] else ""
        lines.append(
            f"  {', '.join(rule['match'])}\n    weight {rule['weight'] or 'float'}, input "
            f"{rule['act'] or 'float'}{steps}. {rule['why']}"
        )
    for attention in recipe.attention:
        lines.append(
            f"  {', '.join(attention.match)}\n    queries and keys {attention.qk or 'float'}. {attention.why}"
        )
    return "\n".join(lines)


def _export(pipeline: Pipeline, path: Path, fmt: str) -> None:
    if pipeline.recipe is not None:
        raise ValueError(
            "a quantized denoiser has no original names; export the float artifact that it came from."
        )
    entry = pipeline.facts["denoiser"]
    config = config_from_json(find("viditq_jax.models", entry["model"]).Config, entry["config"])
    save_safetensors(path, export(pipeline.denoiser, entry["model"], config, format=fmt))
    write_json(path.with_suffix(".json"), entry["config"])
