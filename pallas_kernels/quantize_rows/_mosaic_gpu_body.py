"""The body of quantize_rows' Mosaic GPU kernel: what one block of four warps does with a few rows."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels import instructions
from pallas_kernels.compat import Target
from pallas_kernels.hadamard import _registers as registers
from pallas_kernels.quantize_rows.reference import FLOAT32_MAX, TINY, limits
from pallas_kernels.rows import Pieces, Tiles

Levels = tuple[Pieces, jax.Array, jax.Array | None]  # codes before their conversion rounds them, scale, zero


@dataclasses.dataclass(frozen=True)
class Steps:
    """What is done to rows before the codes, that is not in the operands."""

    rows_of_a_group: int  # which share a modulation
    eps: float
    gelu: bool
    block: int | None
    regular: bool


@dataclasses.dataclass(frozen=True)
class Codes:
    """Which codes are made."""

    bits: int
    symmetric: bool
    dtype: DTypeLike

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest."""
        return limits(self.bits, self.symmetric, self.dtype)

    @property
    def top(self) -> np.float32:
        """How many steps the range of a row has."""
        low, high = self.limits
        return np.float32(high if self.symmetric else high - low)


def quantize_block(
    *refs: Any, names: tuple[str, ...], steps: Steps, codes: Codes, tiles: Tiles, target: Target
) -> None:
    """Quantize `tiles.rows` rows. refs: operands and results in global memory, named by `names`."""
    ref, layout = dict(zip(names, refs, strict=True)), tiles.layout()
    (_, k), width = ref["x"].shape, tiles.shape[-1]
    start = lax.axis_index("block") * tiles.rows
    rows = start if tiles.rows == 1 else pl.ds(start, tiles.rows)
    columns = [pl.ds(channel, width) for channel in range(0, k, width)]
    load = functools.partial(target.load, optimized=False)

    def of_channels(name: str, *index: Any) -> Iterator[jax.Array]:
        """Loads a piece when it is asked for, so that few are in registers."""
        layout_of_channels = layout if tiles.rows == 1 else layout.reduce(0)
        for column in columns:
            vector = load(ref[name], (*index, column), layout=layout_of_channels)
            yield lax.broadcast_in_dim(vector, tiles.shape, (len(tiles.shape) - 1,))

    def of_rows(name: str) -> jax.Array:
        if ref[name].size > 1 and tiles.rows > 1:
            return load(ref[name], (rows,), layout=tiles.layout_of_rows())
        return ref[name][start if ref[name].size > 1 else 0]

    x = [load(ref["x"], (rows, column), layout=layout).astype(jnp.float32) for column in columns]
    if "factor" in ref:
        group = lax.div(start, jnp.int32(steps.rows_of_a_group))
        modulation = zip(of_channels("factor", group), of_channels("shift", group), strict=True)
        normal = _normalized(x, k, steps.eps)
        x = [piece * factor + shift for piece, (factor, shift) in zip(normal, modulation, strict=True)]
    if steps.gelu:
        x = [_gelu(piece) for piece in x]
    if "multiplier" in ref:
        x = list(map(jnp.multiply, x, of_channels("multiplier")))
    if steps.block is not None:
        exchange = functools.partial(instructions.exchange, vector=tiles.vector, target=target, layout=layout)
        x = registers.transformed(x, block=steps.block, regular=steps.regular, exchange=exchange)

    divide = functools.partial(instructions.divided_by, target=target, layout=tiles.layout_of_rows())
    if "scale" in ref:
        levels, scale, zero = _static(
            x, codes, divide, of_rows("scale"), of_rows("zero") if "zero" in ref else None
        )
    else:
        levels, scale, zero = (_symmetric if codes.symmetric else _asymmetric)(x, codes, divide)
    ref["scales"][rows] = scale
    if "zeros" in ref and zero is not None:
        ref["zeros"][rows] = zero.astype(jnp.int8)
    if codes.dtype == jnp.int8:
        made = [instructions.to_int8(level, target=target, layout=layout) for level in levels]
    else:
        made = [jnp.where(level == level, level, 0).astype(codes.dtype) for level in levels]
    for column, piece in zip(columns, made, strict=True):
        ref["codes"][rows, column] = piece
    if "sums" in ref:
        ref["sums"][rows] = _row_sum([piece.astype(jnp.int32) for piece in made])


def _normalized(x: Pieces, k: int, eps: float) -> Pieces:
    mean = _row_sum(x) * np.float32(1 / k)
    x = [piece - _over(mean, piece) for piece in x]
    variance = _row_sum([piece * piece for piece in x]) * np.float32(1 / k)
    size = lax.rsqrt(variance + np.float32(eps))
    return [piece * _over(size, piece) for piece in x]


def _gelu(x: jax.Array) -> jax.Array:
    """x / (1 + exp(-2 u)), which equals 0.5 x (1 + tanh(u)) and needs no tanh, of 20 instructions."""
    to_exponent = -2 * math.sqrt(2 / math.pi) / math.log(2)
    exponent = x * (np.float32(to_exponent) + np.float32(to_exponent * 0.044715) * (x * x))
    root = lax.rsqrt(1 + jnp.exp2(exponent))
    return x * root * root


def _static(x: Pieces, codes: Codes, divide: Any, scale: jax.Array, zero: jax.Array | None) -> Levels:
    """scale, zero: of each row, or one for all."""
    largest = _row_max([jnp.abs(piece) for piece in x])
    inverse = jnp.broadcast_to(divide(scale, np.float32(1)), largest.shape)
    shift = None if zero is None else jnp.broadcast_to(zero.astype(jnp.float32), largest.shape)
    scale = jnp.where(largest < jnp.inf, jnp.broadcast_to(scale, largest.shape), jnp.nan)
    return [_shifted(piece * _over(inverse, piece), shift, codes) for piece in x], scale, zero


def _symmetric(x: Pieces, codes: Codes, divide: Any) -> Levels:
    """No level is above the highest code by more than it loses in rounding, so none is clipped."""
    extent, finite = _extent(_row_max([jnp.abs(piece) for piece in x]), codes.top)
    inverse = jnp.where(finite, divide(extent, codes.top), 0)
    scale = jnp.where(finite, extent * (1 / codes.top), jnp.nan)
    return [piece * _over(inverse, piece) for piece in x], scale, None


def _asymmetric(x: Pieces, codes: Codes, divide: Any) -> Levels:
    """The zero point is an integer in float32."""
    low = jnp.minimum(jnp.min(functools.reduce(jnp.minimum, x), axis=-1), 0)
    extent, finite = _extent(jnp.maximum(_row_max(x), 0) - low, codes.top)
    inverse = jnp.where(finite, divide(extent, codes.top), 0)
    scale = jnp.where(finite, extent * (1 / codes.top), jnp.nan)
    zero = jnp.where(finite, codes.limits[0] - jnp.round(low * inverse), 0)
    return [_shifted(piece * _over(inverse, piece), zero, codes) for piece in x], scale, zero


def _extent(extent: jax.Array, top: np.float32) -> tuple[jax.Array, jax.Array]:
    """The extent of rows, at least TINY, and whether such rows have codes; 1 where they have none.

    A row without codes gets the inverse 0, so its levels are 0 or NaN, and its codes 0.
    """
    finite = extent <= np.float32(min(float(top) * 2.0**125, FLOAT32_MAX))  # False for NaN
    return jnp.where(finite, jnp.maximum(extent, TINY), 1), finite


def _shifted(level: jax.Array, zero: jax.Array | None, codes: Codes) -> jax.Array:
    """With the zero point, of which NaN becomes the code, and clipped where the conversion does not clip."""
    if zero is not None:
        level = jnp.round(jnp.where(level == level, level, 0)) + _over(zero, level)
    low, high = codes.limits
    return level if low == -128 else jnp.clip(level, np.float32(low), np.float32(high))


def _over(of_row: jax.Array, like: jax.Array) -> jax.Array:
    """What is true of a row, for each of its channels in a piece."""
    return lax.broadcast_in_dim(of_row, like.shape, tuple(range(of_row.ndim)))


def _row_sum(x: Pieces) -> jax.Array:
    """Of each row: pieces first, then across lanes."""
    return jnp.sum(functools.reduce(jnp.add, x), axis=-1)


def _row_max(x: Pieces) -> jax.Array:
    """Of each row; NaN where one is."""
    return jnp.max(functools.reduce(jnp.maximum, x), axis=-1)
