"""Linear layers: `linear` is the only place where weights meet inputs.

A weight slot holds a float matrix, or any object with a method `linear(x, bias)`; the object in the slot
decides what the layer computes. That is how quantized, observed and learned weights enter a model that knows
nothing of them.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from viditq_jax.net import Weight, draw
from viditq_jax.nn.norm import layer_norm, modulate


class Modulated(NamedTuple):
    """An input that is not normalized and modulated yet: modulate(layer_norm(x, eps), shift, scale).

    A weight object may do both on its own way, such as with its balance folded into shift and scale; every
    other takes `plain` of it.
    """

    x: jax.Array  # [b n d]
    shift: jax.Array  # [b #n d]
    scale: jax.Array  # [b #n d]
    eps: float = 1e-6

    @property
    def dtype(self) -> Any:
        """That of x, and so of the layer's output."""
        return self.x.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of x, and so of the value."""
        return self.x.shape

    def float32(self, balance: Float[Array, " d"] | None = None) -> Float[Array, "b n d"]:
        """The value without a rounding on the way, divided by `balance`.

        The division costs nothing a token: it goes into shift and 1 + scale, [b 1 d] each.
        """
        shift, scale = self.shift.astype(jnp.float32), 1 + self.scale.astype(jnp.float32)
        if balance is not None:
            shift, scale = shift / balance, scale / balance
        return layer_norm(self.x.astype(jnp.float32), self.eps) * scale + shift


class After(NamedTuple):
    """What a linear layer does to its output y in the end: gelu(y), then residual + gate * y.

    A float layer does it in the dtype of y; a weight object may do it in the product's float32, before the
    one rounding.
    """

    gelu: bool = False  # the tanh form
    residual: Any = None  # [... n]
    gate: Any = None  # [b 1 n], with a residual [b n d]

    def __call__(self, y: jax.Array) -> jax.Array:
        """In the dtypes that are given."""
        y = jax.nn.gelu(y, approximate=True) if self.gelu else y
        if self.residual is None:
            return y
        return self.residual + (y if self.gate is None else self.gate * y)


NOTHING = After()


def plain(x: jax.Array | Modulated) -> jax.Array:
    """The input as an array, rounded to its dtype after the norm and after the modulation."""
    return modulate(layer_norm(x.x, x.eps), x.shift, x.scale) if isinstance(x, Modulated) else x


@runtime_checkable
class WeightObject(Protocol):
    """What may sit in a weight slot instead of a matrix."""

    def linear(self, x: jax.Array | Modulated, bias: jax.Array | None, after: After = NOTHING) -> jax.Array:
        """x [..., k] -> y [..., n], in the dtype of x."""
        ...


def precision(dtype: Any) -> jax.lax.Precision:
    """float32 means float32: no TF32 and no bfloat16 passes on an accelerator."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def linear(
    weight: Any,
    x: Float[Array, "... k"] | Modulated,
    bias: Float[Array, " n"] | None = None,
    after: After = NOTHING,
) -> Float[Array, "... n"]:
    """after(y), where y = x @ weight.T + bias is summed in float32 and rounded once to the dtype of x.

    weight: a float matrix [n, k], or a WeightObject.
    """
    if isinstance(weight, WeightObject):
        return weight.linear(x, bias, after)
    x = plain(x)
    y = jnp.einsum(
        "...k,nk->...n", x, weight, preferred_element_type=jnp.float32, precision=precision(x.dtype)
    )
    if bias is not None:
        y = y + bias.astype(jnp.float32)
    return after(y.astype(x.dtype))


class Linear(nnx.Module):
    """y = x @ weight.T + bias; the weight is [out_features, in_features], as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=-1, out_axis=-2)
        self.weight = Weight(draw(init, (out_features, in_features), rngs))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "... k"] | Modulated, after: After = NOTHING) -> Float[Array, "... n"]:
        return linear(self.weight.get_value(), x, None if self.bias is None else self.bias.get_value(), after)


def zeroed(layer: Linear) -> Linear:
    """The layer with a zero weight: a fresh residual branch that starts as nothing."""
    layer.weight.set_value(jnp.zeros_like(layer.weight.get_value()))
    return layer
