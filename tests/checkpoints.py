"""Weights of PyTorch models, brought into a Net the way users do it: through a file and a conversion."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from converters.rules import Table, convert
from converters.sources import open_source
from viditq_jax.net import Net, abstract

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> tuple[dict[str, np.ndarray], Mapping[str, np.ndarray]]:
    """A golden forward pass: the checkpoint under its original names, and all other arrays, as "in/x"."""
    values = np.load(GOLDEN / f"{name}.npz")
    state = {key.removeprefix("sd/"): values[key] for key in values.files if key.startswith("sd/")}
    return state, {key: values[key] for key in values.files if not key.startswith("sd/")}


def convert_state(
    build: Callable[..., Any], config: Any, state: Mapping[str, Any], table: Table, folder: Path
) -> Net:
    """The Net of a state dict whose names are those of `table`, through a file in `folder`."""
    file = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, file)
    return convert(abstract(build, config), open_source(file).tensors, table, jnp.float32)
