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

    Raises LookupError, with the nearest names, if there is no such module.
    """
    known = names(package)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise LookupError(
            f"{package} has no {name!r}; did you mean {', '.join(near)}? Known: {', '.join(known)}."
        )
    module = importlib.import_module(f"{package}.{name}")
    return getattr(module, attribute) if attribute else module
