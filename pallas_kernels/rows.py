"""Rows in registers: how a Mosaic GPU kernel that reads whole rows divides them among warps.

A warp holds a row, or two or four warps share a long one, as a list of pieces. Of each piece a lane has
`vector` neighbouring channels; the next channels are in the next lane, then in the next warp, then piece.
"""

from typing import Any, NamedTuple

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

WARPS, LANES = 4, 32  # of a block, of a warp
COMFORTABLE = 72  # float32 numbers that a lane holds; with more, few warps fit a multiprocessor
CANDIDATES = 8  # tiles that are worth a measurement
MOST = 144  # none of the kernels spills yet

Pieces = list[jax.Array]  # float32: [rows, width] each, or [width] of one row


class Tiles(NamedTuple):
    """How rows lie in a block of four warps."""

    rows: int  # of a block: a multiple of 4 or of 2, or 1, where 1, 2 or 4 warps share a row
    warps: int  # that share a row
    vector: int  # neighbouring channels of a lane: 8, 4, 2 or 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a piece: [rows, width], or [width] of one row."""
        width = self.warps * LANES * self.vector
        return (width,) if self.rows == 1 else (self.rows, width)

    def layout(self) -> Any:
        """Of a piece in registers: warps over rows and runs of channels, lanes over vectors."""
        of_lane, of_warp, width = (self.vector,), (LANES * self.vector,), self.shape[-1]
        tiles: tuple[tuple[int, ...], ...]
        warp_dims: tuple[int, ...] = (-3,)
        if self.warps == 1:  # 4 warps, 32 lanes, vector
            tiles = ((WARPS, width), of_lane)
        elif self.warps == 2:  # 2 rows, 2 warps, 32 lanes, vector
            tiles, warp_dims = ((2, width), of_warp, of_lane), (-4, -3)
        else:  # 4 warps, 32 lanes, vector
            tiles = ((width,), of_warp, of_lane)
        return plgpu.Layout.TILED(plgpu.Tiling(tiles), warp_dims=warp_dims, lane_dims=(-2,), vector_dim=-1)

    def layout_of_rows(self) -> Any:
        """Of what is one number a row."""
        return plgpu.Layout.WG_SPLAT(()) if self.rows == 1 else self.layout().reduce(1)


def ranked(choices: list[Tiles], k: int) -> list[Tiles]:
    """First few warps a row of k channels, wide loads, two rows a warp, which share what channels have."""
    return sorted(choices, key=lambda t: (_held(t, k) > COMFORTABLE, t.warps, -t.vector, -t.rows))


def fitting(m: int, k: int) -> list[Tiles]:
    """All tiles for rows of k channels of which m share what belongs to channels."""
    choices = [
        Tiles(rows, warps, vector)
        for warps, numbers in ((1, (8, 4)), (2, (4, 2)), (4, (1,)))
        for rows in numbers
        for vector in (8, 4, 2, 1)
    ]
    return [t for t in choices if m % t.rows == 0 and k % t.shape[-1] == 0 and _held(t, k) <= MOST]


def _held(tiles: Tiles, k: int) -> int:
    """Numbers of a lane."""
    return tiles.rows * k // (WARPS * LANES)
