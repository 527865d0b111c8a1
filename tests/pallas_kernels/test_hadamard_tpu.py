"""The Hadamard transform on TPUs, without one: the kernel interpreted, and its lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat, devices, dispatch, lanes
from pallas_kernels.hadamard import _lanes, hadamard, matrix, tpu
from tests.pallas_kernels.interpretation import lowered_for_tpu

RNG = np.random.default_rng(0)


@functools.partial(jax.jit, static_argnames=("rows", "races", "block", "regular"))
def interpreted(x, *, block, regular=False, rows=16, races=False):
    how = compat.interpreted_tpu(detect_races=races)
    return tpu.kernel(x, block=block, regular=regular, tiles=lanes.Tiles(rows), interpret=how)


@functools.partial(jax.jit, static_argnames=("block", "regular"))
def reference(x, *, block, regular=False):
    return hadamard(x, block=block, regular=regular, implementation="reference")


@pytest.mark.parametrize(
    ("k", "block", "regular", "dtype"),
    [
        (128, 1, False, jnp.bfloat16),
        (256, 32, False, jnp.float32),
        (256, 64, True, jnp.bfloat16),
        (512, 512, False, jnp.float32),
        (1024, 1024, True, jnp.bfloat16),
        (1536, 1536, False, jnp.bfloat16),
    ],
)
def test_integers_are_transformed_as_by_the_reference_bit_for_bit(k, block, regular, dtype):
    """The sums are exact in any order, of one product or of three; then one rounding.

    Of 20 rows the last block has 4.
    """
    most = 100 if dtype == jnp.bfloat16 else 10000
    x = jnp.asarray(RNG.integers(-most, most, (20, k)), dtype)
    made = interpreted(x, block=block, regular=regular)
    np.testing.assert_array_equal(made, reference(x, block=block, regular=regular))


def test_numbers_of_24_bits_lose_no_more_than_sums_of_float32_do():
    """Of a block of n the error of a sum is at most n roundings of sums, which are at most the sum of |x|."""
    x = jnp.asarray(RNG.standard_normal((16, 256)), jnp.float32)
    exact = np.asarray(x, np.float64).reshape(-1, 128) @ (matrix(128) / np.sqrt(128))
    most = 128 * 2.0**-24 * np.abs(np.asarray(x)).reshape(-1, 128).sum(1, keepdims=True) / np.sqrt(128)
    made = np.asarray(interpreted(x, block=128), np.float64).reshape(-1, 128)
    assert np.all(np.abs(made - exact) <= most + 2.0**-24 * np.abs(exact))


def test_blocks_of_rows_do_not_race():
    interpreted(jnp.ones((24, 256)), block=256, races=True)
    assert not compat.races_found_tpu()


@pytest.mark.parametrize(
    ("block", "regular", "order", "first"),
    [
        (32, False, 128, ()),
        (128, False, 128, ()),
        (4096, False, 128, (2, 2, 2, 2, 2)),
        (1536, False, 128, (12,)),
        (256, True, 256, ()),
        (1024, True, 256, (4,)),
    ],
)
def test_the_last_factors_fill_lanes_and_the_first_stand_before_them(block, regular, order, first):
    split = _lanes.split(block, regular)
    assert (split.order, split.first) == (order, first)


@pytest.mark.parametrize(("m", "k", "block"), [(64, 1152, 32), (7, 1152, 128), (200, 3072, 3072)])
def test_the_kernel_that_a_tpu_takes_lowers_for_it(m, k, block):
    x = jax.ShapeDtypeStruct((m, k), jnp.bfloat16)
    module = lowered_for_tpu(functools.partial(hadamard, block=block), x)
    assert module.count("stablehlo.custom_call @tpu_custom_call") == 1


def test_blocks_that_do_not_fill_lanes_are_left_to_xla():
    with devices.tracing_for(devices.Tpu("TPU v5e")):
        reasons = dispatch.explain("hadamard", jnp.ones((4, 1152)), block=96, regular=False)
    assert reasons["tpu"].startswith("the factors (12, 2, 2, 2) of blocks of 96 do not fill 128 lanes")
    assert reasons["xla"] is None


def test_a_cpu_is_no_place_for_the_kernel():
    reasons = dispatch.explain("hadamard", jnp.ones((4, 128)), block=32, regular=False)
    assert reasons["tpu"] == "the default device is no TPU"
