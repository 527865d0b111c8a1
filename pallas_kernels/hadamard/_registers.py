"""Hadamard transforms of rows that lie in the registers of a warp, by butterflies; for Mosaic GPU kernels.

A row is a list of pieces of equal width. Of a channel's number the lowest bits say where it is in the vector
of a lane, the next which of 32 lanes, the highest which piece. A butterfly on bit t adds each channel to the
one whose number differs in that bit: within a lane or between pieces that is one addition, between lanes also
one shuffle of the warp. So a block of n = 2**t channels costs t additions a number and no memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.rows import LANES, Pieces, Tiles


def misfit(block: int, regular: bool, tiles: Tiles | None = None) -> str | None:
    """Why butterflies cannot transform blocks, or not those of rows that lie so, or None."""
    if block & (block - 1):
        return f"butterflies need a power of 2, not blocks of {block}"
    if regular and block.bit_length() % 2 == 0:
        return f"regular butterflies need a power of 4, not blocks of {block}"
    if tiles is not None and tiles.warps > 1 and block > LANES * tiles.vector:
        return f"blocks of {block} channels do not stay in one of {tiles.warps} warps that share a row"
    return None


def transformed(
    pieces: Pieces, *, block: int, regular: bool, exchange: Callable[[jax.Array, int], jax.Array]
) -> Pieces:
    """The contract of the op on consecutive pieces of rows.

    exchange: (piece, t) -> the piece with channel j where channel j ^ 2**t was, as in `instructions.py`.
    """
    shape = pieces[0].shape
    width = shape[-1]
    channel = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)

    def flipped(pieces: Pieces, bit: int) -> Pieces:
        if 2**bit < width:
            return [exchange(piece, bit) for piece in pieces]
        return [pieces[i ^ (2**bit // width)] for i in range(len(pieces))]

    def butterfly(pieces: Pieces, bit: int) -> Pieces:
        """(a, b) -> (a + b, a - b)."""
        others = flipped(pieces, bit)
        if 2**bit < width:
            sign = jnp.where((channel & 2**bit) == 0, jnp.float32(1), jnp.float32(-1))
            return [other + sign * piece for piece, other in zip(pieces, others, strict=True)]
        low = [not i & (2**bit // width) for i in range(len(pieces))]
        return [
            other + piece if first else other - piece
            for piece, other, first in zip(pieces, others, low, strict=True)
        ]

    def regular_base(pieces: Pieces, bit: int) -> Pieces:
        """(a, b, c, d) -> their sum, less twice (d, c, b, a)."""
        others = flipped(pieces, bit)
        pairs = [piece + other for piece, other in zip(pieces, others, strict=True)]
        across = zip(pairs, flipped(pairs, bit + 1), flipped(others, bit + 1), strict=True)
        return [pair + other - 2 * opposite for pair, other, opposite in across]

    bits = block.bit_length() - 1
    for bit in range(0, bits, 2) if regular else range(bits):
        pieces = regular_base(pieces, bit) if regular else butterfly(pieces, bit)
    scale = np.float32(block**-0.5)
    return [piece * scale for piece in pieces]
