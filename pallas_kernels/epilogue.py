"""What a product may do to its float32 result before the one rounding: GELU, and a gated sum with a residual.

`scaled_matmul` and `packed_matmul` share these operands and what they mean, which their contracts say.
"""

import math

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

ACTIVATIONS = (None, "gelu")


def check(
    m: int,
    activation: str | None,
    residual: Float[Array, "m n"] | None,
    gate: Float[Array, "b n"] | None,
) -> None:
    """Raises ValueError where the operands of an epilogue do not go together for a product of m rows."""
    if activation not in ACTIVATIONS:
        known = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"activation {activation!r} is unknown; take one of {known}.")
    if gate is None:
        return
    if residual is None:
        raise ValueError(
            f"a gate of {gate.shape} was given without a residual; give the residual that the gated product"
            f" is added to, or multiply the result by the gate."
        )
    if m % gate.shape[0]:
        raise ValueError(
            f"a gate of {gate.shape[0]} rows does not divide {m} rows; give one row for each image, all of"
            f" equally many rows."
        )


def gelu(y: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """0.5 y (1 + tanh(sqrt(2 / pi) (y + 0.044715 y^3))): the tanh form, which diffusion transformers use."""
    return 0.5 * y * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)))


def apply(
    y: Float32[Array, "m n"],
    activation: str | None,
    residual: Float[Array, "m n"] | None,
    gate: Float[Array, "b n"] | None,
) -> Float32[Array, "m n"]:
    """Activation, then residual + gate * y, in float32; row i takes row i // (m / b) of the gate."""
    if activation == "gelu":
        y = gelu(y)
    if gate is not None:
        m, n = y.shape
        images = y.reshape(gate.shape[0], m // gate.shape[0], n)
        y = (gate.astype(jnp.float32)[:, None] * images).reshape(m, n)
    return y if residual is None else residual.astype(jnp.float32) + y


def finish(
    y: Float32[Array, "m n"],
    x_scale: Float32[Array, "#m 1"],
    *,
    bias: Float[Array, " n"] | None,
    activation: str | None,
    residual: Float[Array, "m n"] | None,
    gate: Float[Array, "b n"] | None,
    out_dtype: DTypeLike,
) -> Float[Array, "m n"]:
    """All that follows the sum over groups: row scales, bias, what `apply` does, and the one rounding."""
    y = y * x_scale
    y = y if bias is None else y + bias.astype(jnp.float32)
    return apply(y, activation, residual, gate).astype(out_dtype)
