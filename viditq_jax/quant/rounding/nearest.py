"""Nearest rounding: every number to the closest code, each on its own."""

import dataclasses
from functools import partial

import jax
from jaxtyping import Array, Float, Float32

from viditq_jax.quant.qtensor import QTensor, quantize_tensor
from viditq_jax.quant.spec import Spec

NEEDS_GRAM = False


@dataclasses.dataclass(frozen=True)
class Options:
    """There are none."""


@partial(jax.jit, static_argnames=("spec", "options"))
def fit(
    weight: Float[Array, "n k"],
    spec: Spec,
    gram: Float32[Array, "k k"] | None = None,
    options: Options = Options(),
) -> QTensor:
    """The weight in codes of its whole range; what its inputs are does not matter."""
    del gram, options
    return quantize_tensor(weight, spec)
