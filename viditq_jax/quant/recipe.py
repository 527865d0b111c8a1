"""Recipes: which layer gets what, and why. JSON on disk; a program writes them and a person edits them.

    {"source": "...", "expect": {...}, "rules": [
      {"match": ["final_layer*"], "weight": null, "why": "..."},
      {"match": "blocks/*", "weight": "int4/channel/asym", "act": "int8/token",
       "prepare": ["balance:alpha=0.11", "hadamard"], "rounding": "gptq", "why": "...",
       "weight_in": {"1": "int8/channel/asym"}}]}

The first rule that matches the path of a layer wins; layers that no rule matches stay as they are. Every
pattern matches something, unless the rule is optional. "attention" is a list of rules likewise, for modules:

    {"match": "blocks/*/attn", "qk": "int8/token", "why": "..."}
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from viditq_jax.files import parse_json, write_json
from viditq_jax.quant.attention import AttentionRule
from viditq_jax.quant.matching import winners
from viditq_jax.quant.methods import find_method
from viditq_jax.quant.spec import Spec

PACKAGED = "viditq_jax.assets"
_MOST_BYTES = 1 << 24  # of a file; a rule for each layer of the largest model takes a tenth of it
_MOST_RULES, _LONGEST = 10_000, 1_000  # of a recipe, and patterns; characters of a pattern


class RecipeError(ValueError):
    """A recipe that cannot be read, or does not fit a model; the message lists all faults."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What happens to the layers whose path matches one of the patterns.

    match: patterns of `fnmatch`; "*" also matches "/", so "blocks/*/fc1" is fc1 wherever it is in any block.
    weight: None leaves the layer in floating point. act: of the inputs; None multiplies unquantized inputs.
    prepare: files of quant/prepare, each with its options after a colon, in the order in which they meet the
    input.
    rounding: a file of quant/rounding, with its options likewise.
    weight_in: denoising ranges, by number, whose weight is another one; all of them are resident.
    low_rank: rank of a branch that keeps the top singular part of the weight in bfloat16; 0 for none.
    optional: patterns may match nothing, so that one recipe fits several architectures.
    why: a remark for people, shown in reports.
    """

    match: tuple[str, ...]
    weight: Spec | None = None
    act: Spec | None = None
    prepare: tuple[str, ...] = ()
    rounding: str = "nearest"
    low_rank: int = 0
    optional: bool = False
    why: str = ""
    weight_in: tuple[tuple[int, Spec], ...] = ()

    @property
    def specs(self) -> tuple[Spec, ...]:
        """All that the weight may be."""
        return () if self.weight is None else (self.weight, *(spec for _, spec in self.weight_in))

    @property
    def needs_stats(self) -> bool:
        """Whether the layers must be calibrated."""
        static = self.act is not None and self.act.static
        prepared = (find_method("prepare", item).module.NEEDS_STATS for item in self.prepare)
        return static or self.needs_gram or any(prepared)

    @property
    def needs_gram(self) -> bool:
        """Whether calibration must keep the Gram matrix of the layers' inputs."""
        if self.weight is None:
            return False
        return self.low_rank > 0 or find_method("rounding", self.rounding).module.NEEDS_GRAM

    @property
    def changes(self) -> bool:
        """Whether parameters change over the denoising ranges."""
        prepared = (find_method("prepare", item).options for item in self.prepare)
        static = self.act is not None and self.act.per_range
        return static or bool(self.weight_in) or any(getattr(each, "ranges", False) for each in prepared)

    def faults(self) -> list[str]:
        """What makes the rule impossible for any layer."""
        found = []
        for spec in self.specs:
            if not spec.for_weight:
                hint = "weights are int8/channel, int4/group64 or int8/tensor"
                found.append(f"weight: {spec} is for inputs; {hint}")
        if self.act is not None and not self.act.for_input:
            found.append(f"act: {self.act} is for weights; inputs are int8/token or int8/tensor/static")
        if self.weight is None and (self.act is not None or self.prepare or self.low_rank):
            found.append(
                "act, prepare or low_rank with an unquantized weight; give the weight a format, or drop them"
            )
        for spec in self.specs:
            if self.act and spec.kind != self.act.kind:
                found.append(f"{spec} with {self.act}: a product takes two int8 or two fp8 operands")
            if spec.kind == "fp" and self.rounding.partition(":")[0] != "nearest":
                found.append(f"rounding: {self.rounding} chooses between integers; use nearest for {spec}")
        if self.weight_in and self.weight is None:
            found.append("weight_in: the weight is not quantized in the other ranges; give it a format")
        if self.low_rank < 0:
            found.append(f"low_rank: {self.low_rank}; give the rank of the branch, or 0 for none")
        for kind, text in [("rounding", self.rounding), *(("prepare", item) for item in self.prepare)]:
            try:
                find_method(kind, text)
            except ValueError as error:
                found.append(f"{kind}: {error}")
        return found

    def misfits(self, shape: tuple[int, ...]) -> list[str]:
        """Why a weight of this shape cannot have what the rule says."""
        if self.weight is None:
            return []
        for spec in self.specs:
            if reason := spec.misfit(shape):
                return [f"{spec}: {reason}"]
        methods = [(item, find_method("prepare", item)) for item in self.prepare]
        reasons = [(item, method.module.misfit(shape[1], method.options)) for item, method in methods]
        found = [f"{item}: {reason}" for item, reason in reasons if reason]
        if self.low_rank > min(shape):
            found.append(f"low_rank: {self.low_rank} is more than its {min(shape)} inputs or outputs")
        return found

    def to_json(self) -> dict[str, Any]:
        """The rule as it is written in a file."""
        other = {"weight_in": {str(r): str(spec) for r, spec in self.weight_in}} if self.weight_in else {}
        return {
            "match": list(self.match),
            "weight": None if self.weight is None else str(self.weight),
            "act": None if self.act is None else str(self.act),
            "prepare": list(self.prepare),
            "rounding": self.rounding,
            "low_rank": self.low_rank,
            "optional": self.optional,
            "why": self.why,
            **other,
        }


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Rules in order of precedence.

    ranges: times, rising, at which parameters change during denoising: (501,) means 0 to 500 and from 501 on.
    attention: rules of the attention modules, in order of precedence; what none matches stays in floats.
    tuning: a file of quant/tuning, with its options, that trains the rounding of whole blocks afterwards.
    correction: "ptqd" measures afterwards how the noise of quantization follows the prediction, and removes
        that part.
    source: where the recipe is from. expect: the quality and size that it should reach.
    """

    rules: tuple[Rule, ...]
    ranges: tuple[int, ...] = ()
    attention: tuple[AttentionRule, ...] = ()
    tuning: str = ""
    correction: str = ""
    source: str = ""
    expect: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    name: str = "unnamed"

    @property
    def needs_stats(self) -> bool:
        """Whether some layers must be calibrated."""
        return any(rule.needs_stats for rule in self.rules)

    @property
    def range_count(self) -> int:
        """How many ranges of denoising times there are."""
        return len(self.ranges) + 1

    def faults(self) -> list[str]:
        """What makes the recipe impossible for any model, each with the number of its rule."""
        found = [f"rule {i}: {fault}" for i, rule in enumerate(self.rules, 1) for fault in rule.faults()]
        for i, each in enumerate(self.attention, 1):
            found += [f"attention rule {i}: {fault}" for fault in each.faults()]
        for i, rule in enumerate(self.rules, 1):
            if wrong := [r for r, _ in rule.weight_in if not 0 <= r < self.range_count]:
                found.append(f"rule {i}: weight_in: ranges {wrong} are not among 0 to {self.range_count - 1}")
            balances = (find_method("prepare", item) for item in rule.prepare) if not rule.faults() else ()
            if rule.weight_in and any(getattr(each.options, "ranges", False) for each in balances):
                found.append(f"rule {i}: weight_in: with a balance a range each; choose one of the two")
        if any(not 0 < t < 1000 for t in self.ranges) or any(a >= b for a, b in pairwise(self.ranges)):
            found.append(f"ranges: {list(self.ranges)} do not rise between 1 and 999")
        if not found and bool(self.ranges) != any(rule.changes for rule in self.rules):
            found.append(
                "ranges: no rule has parameters that change over them; drop them, or mark a balance with"
                " ranges=true or an input with /range"
                if self.ranges
                else "ranges: a rule has parameters that change over them; give the bounds"
            )
        if self.correction not in ("", "ptqd"):
            found.append(f"correction: {self.correction!r} is not known; known: ptqd")
        if self.tuning and any(each.qk for each in self.attention):
            found.append(
                "tuning: it follows gradients, and queries and keys that are rounded have none; drop it, or"
                " the attention rules"
            )
        if self.tuning:
            try:
                find_method("tuning", self.tuning)
            except ValueError as error:
                found.append(f"tuning: {error}")
        return found

    def resolve(self, weights: Mapping[str, Any]) -> dict[str, Rule]:
        """The rule of each layer that has one.

        weights: path -> anything with a shape [n, k], such as `net.weights()`, of a real or an abstract Net.
        Raises RecipeError for impossible rules, for patterns that match nothing and rules that never win
        (unless optional), and for layers that do not fit their rule.
        """
        if faults := self.faults():
            raise RecipeError(f"recipe {self.name} is impossible:\n  " + "\n  ".join(faults))
        winner, faults = winners(self.rules, weights, rule="rule", what="layers")
        for path, i in winner.items():
            faults += [
                f"rule {i + 1}: {path}: {reason}" for reason in self.rules[i].misfits(weights[path].shape)
            ]
        if faults:
            raise RecipeError(f"recipe {self.name} does not fit the model:\n  " + "\n  ".join(faults))
        return {path: self.rules[i] for path, i in winner.items()}

    def resolve_attention(self, modules: Iterable[str]) -> dict[str, AttentionRule]:
        """The rule of each attention module that has one, of the paths of all; raises as `resolve` does."""
        winner, faults = winners(
            self.attention, modules, rule="attention rule", what="attention modules that can have 8 bits"
        )
        if faults:
            raise RecipeError(f"recipe {self.name} does not fit the model:\n  " + "\n  ".join(faults))
        return {path: self.attention[i] for path, i in winner.items()}

    def to_json(self) -> dict[str, Any]:
        """The recipe as it is written in a file; `from_json` gives it back."""
        rules = [rule.to_json() for rule in self.rules]
        facts = {"name": self.name, "source": self.source, "expect": dict(self.expect)}
        after = {"tuning": self.tuning, "correction": self.correction}
        attention = {"attention": [rule.to_json() for rule in self.attention]} if self.attention else {}
        return {**facts, "ranges": list(self.ranges), **after, "rules": rules, **attention}

    @classmethod
    def from_json(cls, data: Any, *, file: str = "recipe") -> "Recipe":
        """Check and build. Raises RecipeError with every fault, with `file` and the number of the rule."""
        faults: list[str] = []
        texts = dict.fromkeys(("name", "source", "tuning", "correction"), str)
        kinds = {**texts, "expect": dict, "ranges": list, "rules": list, "attention": list}
        fields = _checked(data, kinds, "", faults)
        if not fields.get("rules"):
            faults.append("rules: give a list of at least one rule")
        given = [*fields.get("rules", ()), *fields.get("attention", ())]
        if len(given) > _MOST_RULES:
            raise RecipeError(f"{file}: {len(given)} rules; give {_MOST_RULES} at most.")
        rules = [_rule(item, f"rule {i}: ", faults) for i, item in enumerate(fields.pop("rules", ()), 1)]
        attention = fields.pop("attention", ())
        chosen = [_attention(item, f"attention rule {i}: ", faults) for i, item in enumerate(attention, 1)]
        ranges = fields.pop("ranges", [])
        if (count := sum(len(rule.match) for rule in (*rules, *chosen) if rule)) > _MOST_RULES:
            faults.append(f"rules: {count} patterns; give {_MOST_RULES} at most")
        if not all(type(t) is int for t in ranges):
            faults.append(f"ranges: found {ranges!r}, expected a list of integers")
        if not faults:
            recipe = cls(
                tuple(rule for rule in rules if rule),
                tuple(ranges),
                tuple(rule for rule in chosen if rule),
                **{"name": Path(file).stem, **fields},
            )
            faults = recipe.faults()
        if faults:
            raise RecipeError("\n".join(f"{file}: {fault}" for fault in faults))
        return recipe

    def save(self, path: str | Path) -> None:
        """Write the recipe as a JSON file."""
        write_json(path, self.to_json(), indent=2)


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A packaged recipe by its name, such as "w8a8", or a JSON file by its path.

    Raises RecipeError for a name that is neither, and for a file that is no recipe.
    """
    folder = resources.files(PACKAGED) / "recipes"
    packaged = {Path(item.name).stem: item for item in folder.iterdir() if item.name.endswith(".json")}
    if str(name_or_path) in packaged:
        text = packaged[str(name_or_path)].read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        if (size := Path(name_or_path).stat().st_size) > _MOST_BYTES:
            raise RecipeError(f"{name_or_path} has {size} bytes; a recipe has {_MOST_BYTES} at most.")
        try:
            text = Path(name_or_path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{name_or_path} is no text ({error.reason}); a recipe is JSON.") from None
    else:
        near = difflib.get_close_matches(str(name_or_path), packaged, n=3, cutoff=0.4)
        nearest = f"; did you mean {', '.join(near)}?" if near else "."
        raise RecipeError(
            f"{name_or_path} is neither a packaged recipe nor a file{nearest} Packaged:"
            f" {', '.join(sorted(packaged))}."
        )
    try:
        data = parse_json(text)
    except ValueError as error:
        raise RecipeError(f"{name_or_path}: {error}; a recipe is a JSON object.") from None
    return Recipe.from_json(data, file=str(name_or_path))


def _rule(data: Any, where: str, faults: list[str]) -> Rule | None:
    """The rule; None if its fields are faulty."""
    texts = dict.fromkeys(("weight", "act", "rounding", "why"), str)
    kinds = {**texts, "match": (str, list), "prepare": list, "low_rank": int, "optional": bool}
    kinds["weight_in"] = dict
    before = len(faults)
    fields = _fields(data, kinds, ("match", "prepare"), ("weight", "act"), where, faults)
    other = []
    for r, text in (fields or {}).pop("weight_in", {}).items():
        try:
            other.append((int(r), Spec.parse(text)))
        except (ValueError, TypeError) as error:
            faults.append(f"{where}weight_in: {r!r}: {text!r}: {error}; give a range's number and a format")
    return None if fields is None or len(faults) > before else Rule(**fields, weight_in=tuple(other))


def _attention(data: Any, where: str, faults: list[str]) -> AttentionRule | None:
    """The rule of attention; None if its fields are faulty."""
    kinds = {"match": (str, list), "qk": str, "optional": bool, "why": str}
    fields = _fields(data, kinds, ("match",), ("qk",), where, faults)
    return None if fields is None else AttentionRule(**fields)


def _fields(
    data: Any,
    kinds: dict[str, Any],
    lists: tuple[str, ...],
    specs: tuple[str, ...],
    where: str,
    faults: list[str],
) -> dict[str, Any] | None:
    """The fields of a rule, texts of lists and specs made what they stand for; None if one is faulty."""
    before = len(faults)
    fields = _checked(data, kinds, where, faults)
    match = fields.get("match", [])
    fields["match"] = [match] if isinstance(match, str) else match
    if isinstance(data, dict) and not fields["match"]:
        faults.append(f"{where}match: give a pattern or a list of patterns")
    for key in lists:
        if not all(isinstance(item, str) for item in fields.setdefault(key, [])):
            faults.append(f"{where}{key}: found {fields[key]!r}, expected texts")
        elif any(len(item) > _LONGEST for item in fields[key]):
            faults.append(f"{where}{key}: a text of more than {_LONGEST} characters")
        fields[key] = tuple(fields[key])
    for key in specs:
        try:
            fields[key] = Spec.parse(fields[key]) if key in fields else None
        except ValueError as error:
            faults.append(f"{where}{key}: {error}")
    return fields if len(faults) == before else None


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
        elif value is not None and (
            not isinstance(value, kinds[key]) or (kinds[key] is int and isinstance(value, bool))
        ):
            names = kinds[key] if isinstance(kinds[key], tuple) else (kinds[key],)
            expected = " or ".join(kind.__name__ for kind in names)
            faults.append(f"{where}{key}: found {value!r}, expected {expected}")
        elif value is not None:
            good[key] = value
    return good
