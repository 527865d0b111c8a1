"""A page of each recipe: its rules from its JSON file, its figures from the records."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from viditq_jax.report.markdown import markdown_table

ROOT = Path(__file__).parent.parent
RECIPES, RECORDS = ROOT / "viditq_jax/assets/recipes", ROOT / "benchmarks/records"
_PARTS = {  # of a rule, as a page calls them
    "weight": "weights", "weight_in": "in some ranges", "act": "inputs", "prepare": "inputs first",
    "rounding": "rounding", "low_rank": "low rank",
}  # fmt: skip


def recipes() -> Iterator[tuple[str, str]]:
    """A page a recipe, and one of all of them."""
    quality = json.loads((RECORDS / "quality-image.json").read_text())
    measured = [
        row
        for kind in ("image", "video")
        for row in json.loads((RECORDS / f"recipes-{kind}.json").read_text())
    ]
    texts = {path.stem: json.loads(path.read_text()) for path in sorted(RECIPES.glob("*.json"))}
    lines = [[f"[`{name}`]({name}.md)", recipe["source"]] for name, recipe in texts.items()]
    text = [
        "# Recipes",
        "A recipe is a JSON file: which layer gets which numbers, transforms and rounding, and why. What "
        "each one gets is in [the table of recipes](../supported.md#recipes). Where a name is asked for, a "
        "file of your own may stand.",
        table(["recipe", "from"], lines),
        "![PSNR of every recipe with and without outliers](../recipes.png)",
        "How that was measured is said on [the page of measurements](../measured.md).",
    ]
    yield "recipes/index", "\n\n".join(text)
    for name, recipe in texts.items():
        parts = [*_rules(name, recipe), *_likeness(name, measured), *_degradation(name, quality)]
        yield f"recipes/{name}", "\n\n".join(parts)


def _rules(name: str, recipe: dict[str, Any]) -> Iterator[str]:
    yield f"# {name}"
    yield f"From {recipe['source']}."
    yield f"```\nviditq quantize MODEL --recipe {name} --out runs/{name}\n```"
    if ranges := recipe.get("ranges"):
        yield f"The denoising times are cut at {', '.join(map(str, ranges))}."
    yield "## Rules"
    yield "The first rule that matches a layer counts."
    lines = []
    for rule in recipe["rules"]:
        gets = [f"{title} {codes(rule[key])}" for key, title in _PARTS.items() if rule.get(key) is not None]
        layers = " ".join(f"`{each}`" for each in listed(rule["match"]))
        lines.append([layers, "<br>".join(gets) or "as it is, in floats", rule.get("why", "")])
    for rule in recipe.get("attention", []):
        layers = " ".join(f"`{each}`" for each in listed(rule["match"]))
        lines.append([layers, f"queries and keys `{rule['qk']}`", rule.get("why", "")])
    yield table(["layers", "what they get", "why"], lines)
    if extra := {key: recipe[key] for key in ("tuning", "correction") if key in recipe}:
        yield f"Afterwards, over the whole model: `{json.dumps(extra)}`."


def _likeness(name: str, measured: list[dict[str, Any]]) -> Iterator[str]:
    rows = [row for row in measured if row["recipe"] == name and "weight_bytes_vs_bfloat16" in row]
    if not rows or name == "float":
        return
    models = {
        "default": "the packaged model",
        "stressed": "the same, with planted outliers",
        "default-video": "the packaged video model",
    }
    figures = {
        "prompts": "", "psnr_db": ".1f", "ssim": ".3f", "latent_rel_l2": ".3f",
        "weight_bytes_vs_bfloat16": ".3f",
    }  # fmt: skip
    lines = [
        [models.get(row["model"], row["model"]), *(f"{row[key]:{form}}" for key, form in figures.items())]
        for row in rows
    ]
    first = rows[0]
    yield "## Measured"
    yield (
        f"Likeness to the float model after {first['steps']} steps, on a {first['device']}, {first['date']}, "
        f"jax {first['versions']['jax']}. What to mind when reading these is on [the page of "
        "measurements](../measured.md)."
    )
    yield table(["on", "prompts", "PSNR, dB", "SSIM", "latent error", "linear weights, of bfloat16"], lines)


def _degradation(name: str, quality: dict[str, Any]) -> Iterator[str]:
    found = quality["variants"].get(name, {}).get("degradation_percent", {})
    if not found or name == "float":
        return
    titles = {"fid_to_real": "FID to the drawings", "perceptual_to_real": "perceptual, nearest drawing"}
    lines = [
        [titles.get(what, what), f"{each['value']:.2f}% [{each['low']:.2f}, {each['high']:.2f}]"]
        for what, each in found.items()
    ]
    yield (
        f"Quality by the packaged metric network, {quality['pictures']} pictures, intervals of "
        f"{quality['level']:.0%}:"
    )
    yield table(["measure", f"worse than {quality['baseline']} by"], lines)


def listed(value: Any) -> list[Any]:
    """A list of one where it is none."""
    return value if isinstance(value, list) else [value]


def codes(names: Any) -> str:
    """Names as code, one after the other."""
    if isinstance(names, dict) and all(isinstance(value, (str, int)) for value in names.values()):
        return ", ".join(f"`{key}: {value}`" for key, value in names.items())
    return ", ".join(f"`{name}`" for name in ([names] if isinstance(names, (str, int)) else names))


def table(titles: list[str], rows: list[list[Any]]) -> str:
    """A table in markdown, of any text."""
    plain = [[str(cell).replace("|", "\\|") for cell in line] for line in (titles, *rows)]
    return markdown_table(plain[0], plain[1:])
