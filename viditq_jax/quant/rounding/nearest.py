"""Nearest rounding: every number to the closest code, each on its own."""

from functools import partial

import jax
from jaxtyping import Array, Float

from viditq_jax.quant.qtensor import QTensor, quantize_tensor
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats


@partial(jax.jit, static_argnames="spec")
def fit(weight: Float[Array, "n k"], spec: Spec, stats: LayerStats | None) -> QTensor:
    """The weight as integers; needs no statistics of its inputs."""
    del stats
    return quantize_tensor(weight, spec)
