"""The Hadamard transform on GPUs, without one: the kernel interpreted, and its lowering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat, dispatch
from pallas_kernels.hadamard import hadamard, mosaic_gpu
from pallas_kernels.rows import Tiles


def interpreted(x, *, tiles, races=False, **options):
    return mosaic_gpu.kernel(x, **options, tiles=tiles, target=compat.interpreted(detect_races=races))


@pytest.mark.parametrize(
    ("block", "regular", "chosen"),
    [
        (32, False, Tiles(4, 1, 4)),
        (64, True, Tiles(8, 1, 8)),
        (512, False, Tiles(4, 1, 2)),
        (2, False, Tiles(2, 2, 2)),
        (32, False, Tiles(1, 4, 4)),
    ],
)
def test_integers_are_transformed_as_by_the_reference_bit_for_bit(block, regular, chosen):
    """The sums are exact in any order; then one rounding."""
    x = jnp.asarray(np.random.default_rng(0).integers(-100, 101, (8, 512)), jnp.bfloat16)
    made = interpreted(x, block=block, regular=regular, tiles=chosen)
    expected = hadamard(x, block=block, regular=regular, implementation="reference")
    np.testing.assert_array_equal(made, expected)


def test_blocks_of_rows_do_not_race():
    interpreted(jnp.ones((8, 128)), block=128, regular=False, tiles=Tiles(4, 1, 4), races=True)
    assert not compat.races_found()


@pytest.mark.parametrize(
    ("m", "k", "block", "rows"),
    [(8, 1152, 32, (24, 384)), (8, 1536, 128, (16, 768)), (2, 4096, 4096, (2, 4096)), (3, 6, 2, (3, 6))],
)
def test_rows_are_cut_into_whole_blocks_of_wide_loads(m, k, block, rows):
    assert mosaic_gpu.cut(m, k, block) == rows


@pytest.mark.parametrize(
    ("m", "k", "block", "regular"),
    [(64, 1152, 32, False), (64, 1152, 64, True), (8, 4096, 4096, True), (4, 4608, 512, False)],
)
def test_the_kernel_lowers_for_cuda(m, k, block, regular):
    x = jax.ShapeDtypeStruct((m, k), jnp.bfloat16)
    chosen = mosaic_gpu.fitting_tiles(x, block=block, regular=regular)[0]

    def transform(x):
        return mosaic_gpu.kernel(x, block=block, regular=regular, tiles=chosen)

    exported = jax.export.export(jax.jit(transform), platforms=["cuda"])(x)
    assert exported.mlir_module().count("stablehlo.custom_call @mosaic_gpu") == 1


def test_a_cpu_is_no_place_for_the_kernel():
    reasons = dispatch.explain("hadamard", jnp.ones((4, 128)), block=32, regular=False)
    assert reasons["mosaic_gpu"] == "it needs an NVIDIA GPU, and the default device is none"
    assert reasons["xla"] is None
