"""Packing, and every implementation of packed_matmul against its reference and against exact integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.packed_matmul import packed_matmul as plain_packed_matmul
from pallas_kernels.packed_matmul.cases import CASES
from pallas_kernels.packing import pack, unpack
from pallas_kernels.scaled_matmul import scaled_matmul
from tests.pallas_kernels.unsupported import skip_unsupported

packed_matmul = skip_unsupported(
    jax.jit(plain_packed_matmul, static_argnames=("out_dtype", "implementation"))
)
IMPLEMENTATIONS = dispatch.implementations("packed_matmul")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


def operands(m, k, n, groups, *, x_zero=False, w_zero=False, seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.integers(-128, 128, (m, k)), jnp.int8)
    codes = jnp.asarray(rng.integers(-8, 8, (n, k)), jnp.int8)
    scales = [jnp.asarray(rng.uniform(1e-3, 1e-1, shape), jnp.float32) for shape in ((m, 1), (n, groups))]
    zeros = {
        "x_zero": jnp.asarray(rng.integers(-128, 128, (m, 1)), jnp.int8) if x_zero else None,
        "w_zero": jnp.asarray(rng.integers(-8, 8, (n, groups)), jnp.int8) if w_zero else None,
    }
    return x, codes, scales, zeros


def test_every_pair_of_codes_survives_packing():
    low, high = np.meshgrid(np.arange(-8, 8), np.arange(-8, 8))
    codes = jnp.asarray(np.stack([low.ravel(), high.ravel()], 1), jnp.int8)  # [256, 2]: all bytes
    packed = pack(codes)
    assert packed.shape == (256, 1)
    assert len(np.unique(packed)) == 256
    np.testing.assert_array_equal(unpack(packed), codes)


def test_a_byte_holds_a_code_of_each_half_of_the_row():
    np.testing.assert_array_equal(pack(jnp.asarray([[1, 2, -8, -1]], jnp.int8)), [[0x81, 0xF2]])


def test_an_odd_number_of_codes_is_refused():
    with pytest.raises(ValueError, match="k must be even"):
        pack(jnp.zeros((2, 3), jnp.int8))


@pytest.mark.parametrize(("x_zero", "w_zero"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("case", CASES)
def test_group_sums_are_exact_integers(implementation, case, x_zero, w_zero):
    """Scales of 1 and 2 keep every float32 step exact: |sum| < 2 * 1152 * 255 * 15 < 2**24."""
    m, k, n, groups = CASES[case]
    x, codes, _, zeros = operands(m, k, n, groups, x_zero=x_zero, w_zero=w_zero)
    w_scale = np.where(np.arange(groups) % 2, 1, 2).astype(np.float32)[None]
    y = packed_matmul(
        x, pack(codes), jnp.ones((1, 1)), jnp.asarray(w_scale), **zeros,
        out_dtype=jnp.float32, implementation=implementation,
    )  # fmt: skip
    x64, w64 = np.asarray(x, np.int64), np.asarray(codes, np.int64)
    x64 = x64 - np.asarray(zeros["x_zero"], np.int64) if x_zero else x64
    w64 = w64 - np.repeat(np.asarray(zeros["w_zero"], np.int64), k // groups, 1) if w_zero else w64
    exact = x64 @ (w64 * np.repeat(w_scale, k // groups, 1).astype(np.int64)).T
    np.testing.assert_array_equal(y, exact)


@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_reference(implementation, case):
    """And both are exact but for the roundings of the contract, each 2**-24 of a partial sum.

    A term meets at most groups + 4: conversion, group scale, the sums of the groups, row scale, bias.
    """
    m, k, n, groups = CASES[case]
    x, codes, scales, zeros = operands(m, k, n, groups, x_zero=True, w_zero=True)
    bias = jnp.linspace(-1, 1, codes.shape[0])
    y, expected = (
        packed_matmul(x, pack(codes), *scales, **zeros, bias=bias, out_dtype=jnp.float32, implementation=name)
        for name in (implementation, "reference")
    )
    x_scale, w_scale = (np.asarray(scale, np.float64) for scale in scales)
    x_zero, w_zero = (np.asarray(zeros[name], np.float64) for name in ("x_zero", "w_zero"))
    a = (np.asarray(x, np.float64) - x_zero) * x_scale
    b = np.repeat(w_scale, k // groups, 1) * (
        np.asarray(codes, np.float64) - np.repeat(w_zero, k // groups, 1)
    )
    exact, terms = a @ b.T + np.asarray(bias), np.abs(a) @ np.abs(b).T + np.abs(np.asarray(bias))
    for found in (y, expected):
        assert np.all(np.abs(np.asarray(found, np.float64) - exact) <= (groups + 4) * 2.0**-24 * terms)


@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_scaled_matmul_on_the_unpacked_codes(implementation, groups):
    """Equal but for fused roundings, whose bound is that of the test above: 2**-20 covers 3 + 4 of them."""
    x, codes, scales, zeros = operands(7, 192, 33, groups, x_zero=True, w_zero=True)
    y = packed_matmul(x, pack(codes), *scales, **zeros, out_dtype=jnp.float32, implementation=implementation)
    other = scaled_matmul(x, codes, *scales, **zeros, out_dtype=jnp.float32)
    size = np.abs(np.asarray(x, np.float64) - np.asarray(zeros["x_zero"])) * np.asarray(scales[0])
    assert np.all(np.abs(y - other) <= 2.0**-20 * size.sum(1, keepdims=True) * 15 * np.max(scales[1]))


def test_given_sums_give_what_computed_sums_give(implementation):
    x, codes, scales, zeros = operands(7, 192, 33, 3, x_zero=True, w_zero=True)
    grouped = codes.reshape(33, 3, 64).astype(jnp.int32) - zeros["w_zero"][..., None]
    args = (x, pack(codes), *scales)
    with_sums = packed_matmul(*args, **zeros, w_sum=grouped.sum(2), implementation=implementation)
    np.testing.assert_array_equal(with_sums, packed_matmul(*args, **zeros, implementation=implementation))


def test_rows_do_not_influence_each_other(implementation):
    x, codes, scales, zeros = operands(9, 64, 16, 2, w_zero=True)
    y = packed_matmul(x, pack(codes), *scales, **zeros, implementation=implementation)
    changed = packed_matmul(x.at[4].set(3), pack(codes), *scales, **zeros, implementation=implementation)
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(changed, 4, 0))


def test_groups_that_do_not_divide_k_are_refused():
    x, codes, (x_scale, _), _ = operands(3, 64, 8, 1)
    with pytest.raises(ValueError, match="in 3 groups"):
        packed_matmul(x, pack(codes), x_scale, jnp.ones((8, 3)))


@pytest.mark.parametrize(
    ("zeros", "largest"),
    [((), 2097151), (("w_zero",), 1118481), (("x_zero",), 1052688), (("x_zero", "w_zero"), 561433)],
)
def test_a_group_of_more_codes_than_int32_sums_is_refused(zeros, largest):
    """128 * 8, 128 * 15, 255 * 8 and 255 * 15 times the number of codes stay below 2**31."""
    zero = {name: jnp.zeros((1, 1), jnp.int8) for name in zeros}

    def shape(k):
        x, w, one = jnp.zeros((1, k), jnp.int8), jnp.zeros((1, k // 2), jnp.uint8), jnp.ones((1, 1))
        return jax.eval_shape(lambda: plain_packed_matmul(x, w, one, one, **zero)).shape

    assert shape(largest // 2 * 2) == (1, 1)
    with pytest.raises(ValueError, match=f"{largest} is the most"):
        shape(largest // 2 * 2 + 2)


def test_the_largest_sum_that_is_allowed_does_not_overflow(implementation):
    k = 561432
    one, high, low = jnp.ones((1, 1)), jnp.full((1, 1), 127, jnp.int8), jnp.full((1, 1), 7, jnp.int8)
    x, w = jnp.full((1, k), -128, jnp.int8), pack(jnp.full((1, k), -8, jnp.int8))
    y = packed_matmul(
        x, w, one, one, x_zero=high, w_zero=low, out_dtype=jnp.float32, implementation=implementation
    )
    assert y[0, 0] == np.float32(255 * 15 * k)
