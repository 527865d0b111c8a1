"""Methods as recipes name them: a file of quant/prepare, quant/rounding or quant/tuning, with options.

    "hadamard"      "balance:alpha=0.5,statistic=initial"      "gptq:order=true"

A file defines `Options`, a frozen dataclass of numbers, texts and truth values; its fields are the options.
"""

import dataclasses
import difflib
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from viditq_jax import plugins

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word"}


class Method(NamedTuple):
    """A file and what it is asked to do."""

    module: ModuleType
    options: Any


@cache
def find_method(kind: str, text: str) -> Method:
    """The method of "prepare", "rounding" or "tuning" that a text names.

    Raises ValueError for an unknown file or option, or an impossible value, with what is known.
    """
    name, _, rest = text.partition(":")
    known = plugins.names(f"viditq_jax.quant.{kind}")
    if name not in known:
        raise ValueError(f"{name!r} is not known; known: {', '.join(known)}.")
    module = plugins.find(f"viditq_jax.quant.{kind}", name)
    fields = {field.name: field for field in dataclasses.fields(module.Options)}
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if key not in fields or not equals:
            near = ", ".join(difflib.get_close_matches(key, fields, n=2) or fields) or "none"
            raise ValueError(f"{name!r} has no option {item!r}; write option=value. Options: {near}.")
        values[key] = _value(name, key, value, type(fields[key].default))
    return Method(module, module.Options(**values))


def _value(name: str, key: str, text: str, kind: type) -> Any:
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{name}: {key}={text!r} is not {_KINDS[kind.__name__]}.") from None
