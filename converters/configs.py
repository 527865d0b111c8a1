"""From what a checkpoint shows, what its config.json says and what a named model has, to one Config.

Shapes are facts: a config that contradicts them is refused. What shapes cannot show (heads, position scale)
comes from the config.json, else from the named model, else from what is published for the family.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from converters.tensor import ConversionError

Shapes = Mapping[str, tuple[int, ...]]
C = TypeVar("C")
# Told by a file or a person; a model with zero or less of these would be built, and make no picture.
_POSITIVE = (
    "heads", "input_size", "frames", "text_length", "pe_interpolation", "space_scale", "time_scale",
    "scaling_factor",
)  # fmt: skip


def resolve(
    kind: type[C],
    inferred: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    named: C | None = None,
    *,
    renamed: Mapping[str, str],
    supported: Mapping[str, tuple[Any, ...]],
    published: Mapping[str, Any],
    required: Collection[str] = (),
    hint: str,
) -> C:
    """The Config of class `kind`.

    inferred: fields read off the shapes. config: the config.json; besides its own keys, fields of `kind` may
    stand in it. named: the config of a known model. renamed: key in config -> our field. supported: the
    values that are allowed for keys that are no field of ours. published: fields to use where nothing else
    tells. required: fields that must be told although they have a default. hint: how to give what is missing.
    Raises ConversionError, which lists every contradiction, unsupported value and missing field.
    """
    # Every C is a dataclass, which has no type that could be written here.
    config, known = config or {}, dataclasses.asdict(named) if named is not None else {}  # type: ignore[call-overload]
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    faults = []
    for key, value in config.items():
        field = renamed.get(key, key)
        if key in supported and value not in supported[key]:
            faults.append(
                f"{key}={value!r} is not supported; supported: {', '.join(map(repr, supported[key]))}"
            )
        elif field in fields and value is not None:
            declared = fields[field].type
            given[field] = _as_field(value, declared)
            if declared in (bool, int, float) and type(given[field]) is not declared:
                faults.append(f"{key}={value!r} should be of type {getattr(declared, '__name__', declared)}")
            elif field in _POSITIVE and not 0 < given[field] < math.inf:
                faults.append(f"{key}={value!r} should be greater than zero")
        elif not (field in fields or key in supported or _is_from_library(config)):
            near = difflib.get_close_matches(key, [*fields, *renamed], n=3) or sorted(fields)
            faults.append(f"the config has an unknown key {key!r}; nearest: {', '.join(near)}")
    for source, values in (("the config", given), ("the named model", known)):
        for field in inferred.keys() & values.keys():
            if inferred[field] != values[field]:
                faults.append(
                    f"{field} is {inferred[field]!r} in the checkpoint, but {values[field]!r} in {source}"
                )
    values = {**published, **known, **given, **inferred}
    needed = [
        name for name, field in fields.items() if field.default is dataclasses.MISSING or name in required
    ]
    lacking = [name for name in needed if name not in values]
    if lacking:
        faults.append(f"the checkpoint does not tell {', '.join(lacking)}; {hint}")
    if faults:
        raise ConversionError(f"the config does not fit: {'; '.join(sorted(faults))}.")
    return kind(**values)


def _as_field(value: Any, kind: Any) -> Any:
    """A JSON value in the type of a field: lists are tuples, and whole numbers may be floats."""
    if isinstance(value, list):
        return tuple(value)
    return float(value) if kind is float and type(value) is int else value


def _is_from_library(config: Mapping[str, Any]) -> bool:
    """Whether a library wrote it: then it has many keys that do not concern us."""
    return bool(
        config.keys()
        & {"_class_name", "_diffusers_version", "model_type", "architectures", "transformers_version"}
    )


def rows(shapes: Shapes, name: str) -> int:
    """The first axis of a tensor, or 0 if there is no such tensor."""
    return (shapes.get(name) or (0,))[0]


def columns(shapes: Shapes, name: str) -> int:
    """The second axis of a tensor, or 0 if there is no such tensor."""
    return (*(shapes.get(name) or ()), 0, 0)[1]


def ratio(hidden: int, width: int) -> float:
    """The factor by which int(factor * width) is `hidden`."""
    factor = hidden / max(width, 1)
    return factor if int(factor * width) == hidden else math.nextafter(factor, math.inf)


def numbers(names: Collection[str], pattern: str) -> tuple[int, ...]:
    """All numbers that stand at {i} in names that begin with the pattern, in order."""
    regex = re.compile(re.escape(pattern).replace(r"\{i\}", "([0-9]+)"))
    return tuple(sorted({int(found[1]) for name in names if (found := regex.match(name))}))
