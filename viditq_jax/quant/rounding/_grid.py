"""What rounding methods share: the error that they minimise, and the steps on both sides of a method.

The error of row w with codes that mean q is (w - q) G (w - q)^T with the Gram matrix G = X^T X of the inputs:
the squared error of the outputs over the calibration rows X, summed. Rows do not influence each other.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

from pallas_kernels.packing import pack
from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.spec import Spec


def refuse(method: str, weight: Float[Array, "n k"], spec: Spec) -> None:
    """Raise ValueError if the method cannot give codes of this spec to this weight."""
    if getattr(spec, "kind", "int") != "int":
        raise ValueError(f"{spec}: {method} chooses between integers; round floats with nearest.")
    if reason := spec.misfit(weight.shape):
        raise ValueError(f"{spec}: {reason}.")


def required(method: str, gram: Float32[Array, "k k"] | None) -> Float32[Array, "k k"]:
    """The Gram matrix, or ValueError where there is none."""
    if gram is None:
        raise ValueError(
            f"{method} weighs errors by the Gram matrix of the inputs; calibrate with gram, or use nearest."
        )
    return gram


def damped(gram: Float32[Array, "k k"], damping: float) -> Float32[Array, "k k"]:
    """The Gram matrix in units of its mean diagonal, plus `damping` on the diagonal: positive definite.

    Directions that no calibration row has, such as dead inputs, so keep a small weight. A matrix of zeros
    gives a multiple of the identity.
    """
    mean = jnp.trace(gram) / gram.shape[0]
    return gram / jnp.where(mean > 0, mean, 1) + damping * jnp.eye(gram.shape[0])


def output_error(error: Float32[Array, "n k"], gram: Float32[Array, "k k"] | None) -> Float32[Array, " n"]:
    """What errors of the weight cost at each output; without a Gram matrix, their squares summed."""
    return ((error if gram is None else error @ gram) * error).sum(1)


@jax.jit
def best(
    weight: Float[Array, "n k"], gram: Float32[Array, "k k"], first: QTensor, second: QTensor
) -> QTensor:
    """Row by row the one of two with the smaller error at the outputs; of all rows if they share a scale."""
    errors = [output_error(weight - q.dequantize(), gram)[:, None] for q in (first, second)]
    if first.scale.shape[0] == 1:
        errors = [error.sum(keepdims=True) for error in errors]
    better = errors[1] < errors[0]
    return jax.tree.map(lambda a, b: jnp.where(better, b, a), first, second)


def columns_of(shared: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A scale or zero point, [1 1], [n 1] or [n k/g], as a matrix [n k] with one of each number's own."""
    n, k = shape
    rows = jnp.broadcast_to(shared, (n, shared.shape[1]))
    return jnp.repeat(rows, k // shared.shape[1], axis=1)


def recoded(q: QTensor, codes: Int8[Array, "n k"]) -> QTensor:
    """Other codes on the same scales."""
    return dataclasses.replace(q, values=pack(codes) if q.spec.packed else codes)


def code_range(spec: Spec) -> tuple[int, int]:
    """The smallest and the largest code."""
    half = 2 ** (spec.bits - 1)
    return (1 - half if spec.symmetric else -half), half - 1
