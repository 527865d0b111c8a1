"""Rows of floats times a block-diagonal orthogonal Hadamard matrix."""

import jax
from jaxtyping import Array, Float, Float32

from pallas_kernels import dispatch
from pallas_kernels.hadamard._matrices import factors, matrix, misfit

__all__ = ["factors", "hadamard", "matrix", "misfit"]


def hadamard(
    x: Float[Array, "m k"], *, block: int, regular: bool = False, implementation: str | None = None
) -> Float32[Array, "m k"]:
    """Each run of `block` channels times H / sqrt(block), which is orthogonal: lengths and products stay.

        H = matrix(block, regular)                                    entries 1 and -1
        y = (float32(x) @ (identity of order k / block, Kronecker H)) * float32(1 / sqrt(block))

    Sums are in float32, in any order, and the scale comes after them: integers whose sums stay below 2**24
    are transformed with a single rounding. H need not be symmetric, so the transform is not its own inverse.
    Raises ValueError, with blocks that work, if there is no matrix of this order or it does not divide k.
    """
    if (reason := misfit(x.shape[1], block, regular)) is not None:
        raise ValueError(f"{reason}.")
    y: jax.Array = dispatch.run("hadamard", implementation, x, block=block, regular=regular)
    return y
