"""Recipes: which layer gets what, and why. JSON on disk; a program writes them and a person edits them.

    {"source": "...", "expect": {...}, "rules": [
      {"match": ["final_layer*"], "weight": null, "why": "..."},
      {"match": "blocks/*", "weight": "int8/channel/asym", "act": "int8/token", "why": "..."}]}

The first rule that matches the path of a layer wins; layers that no rule matches stay as they are.
"""

import dataclasses
import difflib
import fnmatch
import json
from collections.abc import Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from viditq_jax import plugins
from viditq_jax.quant.spec import Spec

PACKAGED = "viditq_jax.assets"


class RecipeError(ValueError):
    """A recipe that cannot be read, or does not fit a model; the message lists all faults."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to the layers whose path matches one of the patterns.

    match: patterns of `fnmatch`; "*" also matches "/", so "blocks/*/fc1" is fc1 wherever it is in any block.
    weight: None leaves the layer in floating point. act: of the inputs; None multiplies unquantized inputs.
    prepare: files of quant/prepare, each with its options after a colon, in the order in which they meet the
    input.
    rounding: a file of quant/rounding. why: a remark for people, shown in reports.
    """

    match: tuple[str, ...]
    weight: Spec | None = None
    act: Spec | None = None
    prepare: tuple[str, ...] = ()
    rounding: str = "nearest"
    why: str = ""

    def matches(self, path: str) -> bool:
        """Whether one of the patterns matches the path of a layer."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.match)

    @property
    def needs_stats(self) -> bool:
        """Whether the layers must be calibrated."""
        return self.act is not None and self.act.static

    def faults(self) -> list[str]:
        """What makes the rule impossible for any layer."""
        found = []
        if self.weight is not None and not self.weight.for_weight:
            hint = "weights are int8/channel, int4/group64 or int8/tensor"
            found.append(f"weight: {self.weight} is for inputs; {hint}")
        if self.act is not None and not self.act.for_input:
            found.append(f"act: {self.act} is for weights; inputs are int8/token or int8/tensor/static")
        if self.weight is None and (self.act is not None or self.prepare):
            found.append("act or prepare with an unquantized weight; give the weight a format, or drop them")
        methods = [("rounding", self.rounding), *(("prepare", item.split(":")[0]) for item in self.prepare)]
        for kind, name in methods:
            known = plugins.names(f"viditq_jax.quant.{kind}")
            if name not in known:
                found.append(
                    f"{kind}: {name!r} is not known; known: {', '.join(known) or 'none in this version'}"
                )
        return found

    def to_json(self) -> dict[str, Any]:
        """The rule as it is written in a file."""
        return {
            "match": list(self.match),
            "weight": None if self.weight is None else str(self.weight),
            "act": None if self.act is None else str(self.act),
            "prepare": list(self.prepare),
            "rounding": self.rounding,
            "why": self.why,
        }


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Rules in order of precedence.

    ranges: times, rising, between which parameters of `prepare` change during denoising.
    source: where the recipe is from. expect: the quality and size that it should reach.
    """

    rules: tuple[Rule, ...]
    ranges: tuple[int, ...] = ()
    source: str = ""
    expect: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    name: str = "unnamed"

    @property
    def needs_stats(self) -> bool:
        """Whether some layers must be calibrated."""
        return any(rule.needs_stats for rule in self.rules)

    def faults(self) -> list[str]:
        """What makes the recipe impossible for any model, each with the number of its rule."""
        found = [f"rule {i}: {fault}" for i, rule in enumerate(self.rules, 1) for fault in rule.faults()]
        if any(not 0 < t < 1000 for t in self.ranges) or any(a >= b for a, b in pairwise(self.ranges)):
            found.append(f"ranges: {list(self.ranges)} do not rise between 1 and 999")
        if self.ranges and not any(rule.prepare for rule in self.rules):
            found.append("ranges: they change what prepare does, and no rule has one; drop them")
        return found

    def resolve(self, weights: Mapping[str, Any]) -> dict[str, Rule]:
        """The rule of each layer that has one.

        weights: path -> anything with a shape [n, k], such as `net.weights()`, of a real or an abstract Net.
        Raises RecipeError for impossible rules, for rules that never win, and for layers that do not fit
        their rule.
        """
        matching = {path: [i for i, rule in enumerate(self.rules) if rule.matches(path)] for path in weights}
        winner = {path: numbers[0] for path, numbers in matching.items() if numbers}
        faults = self.faults()
        for i, rule in enumerate(self.rules):
            where = f"rule {i + 1}: {' | '.join(rule.match)}"
            if not any(i in numbers for numbers in matching.values()):
                near = ", ".join(_nearest_paths(rule, weights))
                faults.append(
                    f"{where} matches none of the {len(weights)} layers; nearest: {near}. Fix the"
                    f" pattern, or delete the rule"
                )
            elif i not in winner.values():
                faults.append(f"{where}: earlier rules take all of its layers. Move it up, or delete it")
        for path, i in winner.items():
            spec = self.rules[i].weight
            if spec is not None and (reason := spec.misfit(weights[path].shape)):
                faults.append(f"rule {i + 1}: {path}: {spec}: {reason}")
        if faults:
            raise RecipeError(f"recipe {self.name} does not fit the model:\n  " + "\n  ".join(faults))
        return {path: self.rules[i] for path, i in winner.items()}

    def to_json(self) -> dict[str, Any]:
        """The recipe as it is written in a file; `from_json` gives it back."""
        rules = [rule.to_json() for rule in self.rules]
        facts = {"name": self.name, "source": self.source, "expect": dict(self.expect)}
        return {**facts, "ranges": list(self.ranges), "rules": rules}

    @classmethod
    def from_json(cls, data: Any, *, file: str = "recipe") -> "Recipe":
        """Check and build. Raises RecipeError with every fault, with `file` and the number of the rule."""
        faults: list[str] = []
        kinds = {"name": str, "source": str, "expect": dict, "ranges": list, "rules": list}
        fields = _checked(data, kinds, "", faults)
        if not fields.get("rules"):
            faults.append("rules: give a list of at least one rule")
        rules = [_rule(item, f"rule {i}: ", faults) for i, item in enumerate(fields.pop("rules", ()), 1)]
        ranges = fields.pop("ranges", [])
        if not all(type(t) is int for t in ranges):
            faults.append(f"ranges: found {ranges!r}, expected a list of integers")
        if not faults:
            recipe = cls(
                tuple(rule for rule in rules if rule), tuple(ranges), **{"name": Path(file).stem, **fields}
            )
            faults = recipe.faults()
        if faults:
            raise RecipeError("\n".join(f"{file}: {fault}" for fault in faults))
        return recipe

    def save(self, path: str | Path) -> None:
        """Write the recipe as a JSON file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A packaged recipe by its name, such as "w8a8", or a JSON file by its path.

    Raises RecipeError for a name that is neither, and for a file that is no recipe.
    """
    folder = resources.files(PACKAGED) / "recipes"
    packaged = {Path(item.name).stem: item for item in folder.iterdir() if item.name.endswith(".json")}
    if str(name_or_path) in packaged:
        text = packaged[str(name_or_path)].read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(str(name_or_path), packaged, n=3, cutoff=0.4) or sorted(packaged)
        raise RecipeError(
            f"{name_or_path} is neither a packaged recipe nor a file; nearest: {', '.join(near)}. Packaged:"
            f" {', '.join(sorted(packaged))}."
        )
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"{name_or_path}: line {error.lineno}: {error.msg}; a recipe is a JSON object."
        ) from None
    return Recipe.from_json(data, file=str(name_or_path))


def _rule(data: Any, where: str, faults: list[str]) -> Rule | None:
    """The rule; None if its fields are faulty."""
    before = len(faults)
    kinds = {"match": (str, list), "weight": str, "act": str, "prepare": list, "rounding": str, "why": str}
    fields = _checked(data, kinds, where, faults)
    match = fields.get("match", [])
    fields["match"] = [match] if isinstance(match, str) else match
    if isinstance(data, dict) and not fields["match"]:
        faults.append(f"{where}match: give a pattern or a list of patterns")
    for key in ("match", "prepare"):
        if not all(isinstance(item, str) for item in fields.setdefault(key, [])):
            faults.append(f"{where}{key}: found {fields[key]!r}, expected texts")
        fields[key] = tuple(fields[key])
    for key in ("weight", "act"):
        try:
            fields[key] = Spec.parse(fields[key]) if key in fields else None
        except ValueError as error:
            faults.append(f"{where}{key}: {error}")
    return Rule(**fields) if len(faults) == before else None


def _checked(data: Any, kinds: dict[str, Any], where: str, faults: list[str]) -> dict[str, Any]:
    """The fields of a JSON object that are known and of the right kind; null counts as absent."""
    if not isinstance(data, dict):
        faults.append(f"{where}found {type(data).__name__}, expected an object with {', '.join(kinds)}")
        return {}
    good = {}
    for key, value in data.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1) or list(kinds)
            faults.append(f"{where}unknown field {key!r}; did you mean {', '.join(near)}?")
        elif value is not None and not isinstance(value, kinds[key]):
            names = kinds[key] if isinstance(kinds[key], tuple) else (kinds[key],)
            expected = " or ".join(kind.__name__ for kind in names)
            faults.append(f"{where}{key}: found {value!r}, expected {expected}")
        elif value is not None:
            good[key] = value
    return good


def _nearest_paths(rule: Rule, paths: Mapping[str, Any]) -> list[str]:
    found = [difflib.get_close_matches(pattern, paths, n=3, cutoff=0.3) for pattern in rule.match]
    return list(dict.fromkeys(path for near in found for path in near))[:3] or list(paths)[:3]
