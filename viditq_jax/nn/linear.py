"""Linear layers: `linear` is the only place where weights meet inputs.

A weight slot holds a float matrix, or any object with a method `linear(x, bias)`; the object in the slot
decides what the layer computes. That is how quantized, observed and learned weights enter a model that knows
nothing of them.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from viditq_jax.net import Weight


@runtime_checkable
class WeightObject(Protocol):
    """What may sit in a weight slot instead of a matrix."""

    def linear(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """x [..., k] -> y [..., n], in the dtype of x."""
        ...


def precision(dtype: Any) -> jax.lax.Precision:
    """float32 means float32: no TF32 and no bfloat16 passes on an accelerator."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def linear(
    weight: Any, x: Float[Array, "... k"], bias: Float[Array, " n"] | None = None
) -> Float[Array, "... n"]:
    """y = x @ weight.T + bias, summed in float32 and rounded once to the dtype of x.

    weight: a float matrix [n, k], or a WeightObject.
    """
    if isinstance(weight, WeightObject):
        return weight.linear(x, bias)
    y = jnp.einsum(
        "...k,nk->...n", x, weight, preferred_element_type=jnp.float32, precision=precision(x.dtype)
    )
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return y.astype(x.dtype)


class Linear(nnx.Module):
    """y = x @ weight.T + bias; the weight is [out_features, in_features], as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=-1, out_axis=-2)
        self.weight = Weight(init(rngs.params(), (out_features, in_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "... k"]) -> Float[Array, "... n"]:
        return linear(self.weight.get_value(), x, None if self.bias is None else self.bias.get_value())


def zeroed(layer: Linear) -> Linear:
    """The layer with a zero weight: a fresh residual branch that starts as nothing."""
    layer.weight.set_value(jnp.zeros_like(layer.weight.get_value()))
    return layer
