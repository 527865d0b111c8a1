"""What no quantized weight has: scales that are not finite or not above zero.

Nothing here writes such a scale; a file that was altered on purpose, with its hashes, may hold one.
"""

from typing import Any

import jax
import numpy as np

from viditq_jax.net import Net
from viditq_jax.quant.qweight import quantized_part

_SCALES = ("scale", "act_scale")  # fields of QTensor, Balance and QWeight


def faults(net: Net) -> list[str]:
    """The scales of a Net that cannot be, each with its layer; codes are not looked at."""
    return [
        fault
        for path, weight in net.weights().items()
        if quantized_part(weight) is not None
        for fault in _faults(path, weight)
    ]


def _faults(path: str, weight: Any) -> list[str]:
    found = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(weight)[0]:
        names = [str(getattr(key, "name", getattr(key, "idx", key))) for key in keys]
        if not set(names) & set(_SCALES):
            continue
        values = np.asarray(leaf)
        if bad := int(values.size - np.count_nonzero(np.isfinite(values) & (values > 0))):
            found.append(f"{path}/{'/'.join(names)}: {bad} of {values.size} are not finite and above zero")
    return found
