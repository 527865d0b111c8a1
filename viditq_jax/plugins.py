"""Find a model, sampler, rounding method, metric or verb by its file name: adding one is adding one file.

This is the only dynamic import of the project.
"""

import difflib
import functools
import importlib
import pkgutil
from typing import Any


def names(package: str) -> list[str]:
    """The public modules of a package such as "viditq_jax.models"."""
    return list(_names(package))


@functools.cache
def _names(package: str) -> tuple[str, ...]:
    found = importlib.import_module(package)
    files = pkgutil.iter_modules(found.__path__)
    return tuple(sorted(item.name for item in files if not item.name.startswith("_")))


def find(package: str, name: str, attribute: str | None = None) -> Any:
    """The module `package.name`, or its `attribute`.

    Raises LookupError, with the nearest names, if there is no such module, or it has no such attribute.
    """
    if name in names(package):
        module = importlib.import_module(f"{package}.{name}")
        if attribute is None or hasattr(module, attribute):
            return getattr(module, attribute) if attribute else module
    known = [
        each
        for each in names(package)
        if attribute is None or hasattr(importlib.import_module(f"{package}.{each}"), attribute)
    ]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    nearest = f"; did you mean {', '.join(near)}?" if near else "."
    raise LookupError(f"there is no {name!r} in {package}{nearest} Known: {', '.join(known)}.")
