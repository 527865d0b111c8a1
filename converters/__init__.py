"""Foreign checkpoints in and out, without PyTorch.

    convert(source, ...) -> Artifact        a checkpoint or a diffusers folder; save it with
    viditq_jax.checkpoint.save export(net, model, config, format)      a float Net under the names of a
    checkpoint save_safetensors(path, tensors)         named arrays to a file

A model family is one file here: its formats as tables of names (`rules.py`), how to recognize them, and a
reader of configs. `sources.py` opens files; nothing in a file is ever run.
"""

from typing import Any

import numpy as np

from converters import families, rules
from converters.pipeline import convert
from converters.safetensors_file import save_safetensors
from converters.tensor import ConversionError, SourceError
from viditq_jax.net import Net

__all__ = ["ConversionError", "SourceError", "convert", "export", "save_safetensors"]


def export(net: Net, model: str, config: Any, format: str = "original") -> dict[str, np.ndarray]:
    """The parameters of a float model under the names of one of the formats of its family, in their own
    types.

    model, config: as in the facts of an artifact, "pixart" and its Config.
    Raises ConversionError for an unknown model or format, for a quantized model, and for a parameter that the
    format has no place for.
    """
    family = families.find(model)
    if format not in family.FORMATS:
        raise ConversionError(
            f"{family.TITLE} has no format {format!r}; choose one of {', '.join(family.FORMATS)}."
        )
    return rules.export(net, family.FORMATS[format](config))
