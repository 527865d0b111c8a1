"""How rows lie in registers, and the butterflies that transform them there."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat, instructions
from pallas_kernels.hadamard import _registers as registers
from pallas_kernels.hadamard import matrix
from pallas_kernels.rows import COMFORTABLE, MOST, fitting, ranked

TILES = [each for k in (192, 1536) for each in fitting(8, k)]


def in_registers(tiles):
    """[4 warps, 32 lanes, registers, vector]: the flat index in a piece of every number that a lane holds."""
    layout = tiles.layout().to_mgpu()
    index = np.arange(np.prod(tiles.shape)).reshape(tiles.shape)
    for tile in layout.tiling.tiles:
        rank, outer = len(tile), index.shape[: index.ndim - len(tile)]
        pairs = [(size // part, part) for size, part in zip(index.shape[-rank:], tile, strict=True)]
        index = index.reshape(*outer, *(size for pair in pairs for size in pair))
        order = [len(outer) + 2 * i for i in range(rank)] + [len(outer) + 2 * i + 1 for i in range(rank)]
        index = index.transpose(*range(len(outer)), *order)
    front = [*layout.warp_dims, *layout.lane_dims]
    index = np.moveaxis(index, front, range(len(front)))
    return index.reshape(4, 32, -1, tiles.vector)


@pytest.mark.parametrize("chosen", TILES, ids=str)
def test_every_number_of_a_piece_is_in_one_register_and_warps_share_rows_as_tiles_say(chosen):
    index = in_registers(chosen)
    np.testing.assert_array_equal(np.sort(index.ravel()), np.arange(np.prod(chosen.shape)))
    rows = index // chosen.shape[-1]
    for warp in range(4):
        assert len(np.unique(rows[warp])) == max(1, chosen.rows * chosen.warps // 4)


@pytest.mark.parametrize("chosen", TILES, ids=str)
def test_channels_that_differ_in_one_bit_are_where_an_exchange_looks_for_them(chosen):
    """In the vector of a lane, or in the same register of the lane at that distance."""
    index, lanes = in_registers(chosen), np.arange(32)
    for bit in range((32 * chosen.vector).bit_length() - 1):
        if 2**bit >= chosen.vector:
            partner = index[:, lanes ^ (2**bit // chosen.vector)]
        else:
            partner = index[..., np.arange(chosen.vector) ^ 2**bit]
        np.testing.assert_array_equal(partner, index ^ 2**bit)


@pytest.mark.parametrize(
    ("m", "k"), [(8192, 1152), (64, 192), (2, 1152), (1, 1152), (7, 4608), (8192, 12288)]
)
def test_tiles_fill_rows_and_registers(m, k):
    chosen = ranked(fitting(m, k), k)[0]
    assert m % chosen.rows == 0
    assert k % chosen.shape[-1] == 0
    assert chosen.rows * k // 128 <= MOST
    assert 4 // chosen.warps == chosen.rows or chosen.rows * k // 128 <= COMFORTABLE


def test_a_row_too_long_or_not_of_whole_warps_has_no_tiles():
    for m, k in ((4, 31), (1, 192), (8192, 18432 + 128)):
        assert not fitting(m, k)


@pytest.mark.parametrize(
    ("block", "regular"),
    [
        (1, False),
        (2, False),
        (64, False),
        (256, False),
        (512, False),
        (1, True),
        (16, True),
        (64, True),
        (256, True),
    ],
)
def test_butterflies_are_the_product_with_the_matrix(block, regular):
    """Of integers, exactly; pieces are 128 wide, so that blocks of 256 and 512 are over two and four."""
    rows = np.random.default_rng(0).integers(-99, 100, (3, 1024)).astype(np.float32)
    exchange = functools.partial(instructions.exchange, vector=4, target=compat.interpreted(), layout=None)
    pieces = [jnp.asarray(piece) for piece in np.split(rows, 8, axis=1)]
    made = registers.transformed(pieces, block=block, regular=regular, exchange=exchange)
    exact = (rows.reshape(-1, block) @ matrix(block, regular)).reshape(rows.shape)
    np.testing.assert_array_equal(np.concatenate(made, axis=1), exact * np.float32(block**-0.5))


def test_butterflies_say_which_blocks_they_cannot_do():
    assert registers.misfit(256, False) is None
    assert registers.misfit(256, True) is None
    assert "power of 2, not blocks of 12" in str(registers.misfit(12, False))
    assert "power of 4, not blocks of 32" in str(registers.misfit(32, True))
