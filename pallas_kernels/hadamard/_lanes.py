"""Hadamard transforms of rows in the vector memory of a TPU; for Mosaic TPU kernels.

A vector register holds 128 neighbouring channels in its lanes. The last factors of a matrix, those whose
order L fills lanes, are one product with an [L, L] matrix for each L channels of a row, on the matrix unit;
smaller blocks stand there several times along the diagonal. The factors before them add and subtract whole
groups of L channels, which moves nothing between lanes.

The matrix has entries 1, -1 and 0, which bfloat16 holds exactly. So a float32 number is cut into three of 8
bits each, and their products, summed in float32, lose nothing that one of float32 would keep: half the work
of Precision.HIGHEST, which cuts the matrix too.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.hadamard._matrices import factors, product

LANES = 128
LARGEST = 256  # order of the product; each channel costs as many multiplications
_HIGH = np.int32(-(1 << 16))  # the bits of a float32 that a bfloat16 has


class Split(NamedTuple):
    """How the transform of a block is done."""

    order: int  # of the product, which is a multiple of LANES
    last: tuple[int, ...]  # factors in the product
    first: tuple[int, ...]  # factors across groups of channels


@functools.cache
def split(block: int, regular: bool) -> Split | None:
    """None where no run of the last factors fills lanes, nor the block divides them."""
    orders = factors(block, regular)
    if LANES % block == 0:
        return Split(LANES, orders, ())
    for start in reversed(range(len(orders))):
        order = math.prod(orders[start:])
        if order % LANES == 0:
            return Split(order, orders[start:], orders[:start]) if order <= LARGEST else None
    return None


def misfit(k: int, block: int, regular: bool) -> str | None:
    """Why rows of k channels cannot be transformed in blocks of `block` in lanes, or None."""
    if k % LANES:
        return f"rows of {k} channels do not fill registers, as multiples of {LANES} do"
    if split(block, regular) is None:
        return (
            f"the factors {factors(block, regular)} of blocks of {block} do not fill {LANES} lanes, as those"
            f" of its divisors and of powers of 2 do"
        )
    return None


def lane_matrix(block: int, regular: bool) -> jax.Array:
    """The bfloat16 [order, order] operand of `transformed`."""
    chosen = split(block, regular)
    assert chosen is not None
    h = product(chosen.last, regular)
    return jnp.asarray(np.kron(np.eye(chosen.order // len(h), dtype=np.int8), h), jnp.bfloat16)


def transformed(y: jax.Array, h: jax.Array, *, block: int, regular: bool, short: bool) -> jax.Array:
    """The contract of the op on float32 rows, in a kernel.

    h: the value of `lane_matrix`. short: bfloat16 holds all numbers of y exactly.
    """
    chosen = split(block, regular)
    assert chosen is not None
    groups = [y[:, start : start + chosen.order] for start in range(0, y.shape[1], chosen.order)]
    groups = [_product(group, h, short) for group in groups]
    stride = 1
    for order in reversed(chosen.first):
        groups = _across(groups, product((order,), regular), stride)
        stride *= order
    scale = np.float32(1 / math.sqrt(block))
    return jnp.concatenate([group * scale for group in groups], axis=1)


def _product(x: jax.Array, h: jax.Array, short: bool) -> jax.Array:
    """x @ h. Cutting by bits, since rounding to bfloat16 and back is what a compiler may leave out."""
    total = None
    for last in (True,) if short else (False, False, True):
        part = x if last else _bits(_bits(x, jnp.int32) & _HIGH, jnp.float32)
        made = jnp.dot(part.astype(jnp.bfloat16), h, preferred_element_type=jnp.float32)
        total = made if total is None else total + made
        x = x - part
    assert total is not None
    return total


def _bits(x: jax.Array, dtype: type) -> jax.Array:
    return lax.bitcast_convert_type(x, dtype)


def _across(groups: list[jax.Array], base: np.ndarray, stride: int) -> list[jax.Array]:
    """Each run of `len(base)` groups, `stride` apart, times base."""
    made = []
    for i in range(len(groups)):
        place = i // stride % len(base)
        run = groups[i - place * stride :: stride][: len(base)]
        terms = zip(run, base[:, place], strict=True)
        made.append(functools.reduce(jnp.add, [each if sign > 0 else -each for each, sign in terms]))
    return made
