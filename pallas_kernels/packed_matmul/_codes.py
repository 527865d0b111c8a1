"""The codes of packed weights as int8, zero points taken off."""

import jax

from pallas_kernels.packing import unpack


def codes(w: jax.Array, w_zero: jax.Array | None, groups: int) -> jax.Array:
    """[n, half] bytes to [n, k] codes less the zero point of their group: of 5 bits, so int8 holds them."""
    unpacked = unpack(w)
    if w_zero is None:
        return unpacked
    grouped = unpacked.reshape(w.shape[0], groups, -1)
    return (grouped - w_zero[..., None]).reshape(unpacked.shape)
