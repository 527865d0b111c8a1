"""Every implementation of scaled_matmul against its reference and against exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.scaled_matmul import scaled_matmul as plain_scaled_matmul
from pallas_kernels.scaled_matmul.cases import CASES
from tests.pallas_kernels.unsupported import skip_unsupported

scaled_matmul = skip_unsupported(
    jax.jit(plain_scaled_matmul, static_argnames=("out_dtype", "implementation"))
)
IMPLEMENTATIONS = dispatch.implementations("scaled_matmul")
FP8 = jnp.float8_e4m3fn


def operands(m, k, n, groups=1, *, x_zero=False, w_zero=False, dtype=np.int8, seed=0):
    """Random codes over the whole range, the largest ones among them for certain."""
    rng = np.random.default_rng(seed)
    if dtype == np.int8:
        x, w = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (n, k)))
        x[0, :] = 127
        w[0, :] = -128
    else:
        x, w = (
            np.clip(rng.standard_normal(shape) * 100, -448, 448).astype(FP8) for shape in ((m, k), (n, k))
        )
        x[0, 0] = w[0, 0] = 448
    scales = [rng.uniform(1e-3, 1e-1, shape).astype(np.float32) for shape in ((m, 1), (n, groups))]
    zeros = {
        "x_zero": rng.integers(-128, 128, (m, 1)).astype(np.int8) if x_zero else None,
        "w_zero": rng.integers(-128, 128, (n, groups)).astype(np.int8) if w_zero else None,
    }
    return [jnp.asarray(a) for a in (x, w, *scales)], {
        k: v if v is None else jnp.asarray(v) for k, v in zeros.items()
    }


def exact_terms(x, w, x_scale, w_scale, x_zero=None, w_zero=None):
    """The operands as float64 numbers: the product of what they return is the product that is meant."""
    repeats = w.shape[1] // w_scale.shape[1]
    x, w, x_scale, w_scale = (np.asarray(a, np.float64) for a in (x, w, x_scale, w_scale))
    x = x - (0 if x_zero is None else np.asarray(x_zero, np.float64))
    w = w - (0 if w_zero is None else np.repeat(np.asarray(w_zero, np.float64), repeats, 1))
    return x * x_scale, w * np.repeat(w_scale, repeats, 1)


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.mark.parametrize(("x_zero", "w_zero"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("case", CASES)
def test_integer_sums_are_exact(implementation, case, x_zero, w_zero):
    """Scales of 1 and 2 leave the conversion of each sum to float32, and the sums of groups, to round."""
    m, k, n, groups = CASES[case]
    (x, w, _, _), zeros = operands(m, k, n, groups, x_zero=x_zero, w_zero=w_zero)
    w_scale = np.where(np.arange(groups) % 2, 2, 1).astype(np.float32)[None]
    y = scaled_matmul(
        x, w, jnp.ones((1, 1)), jnp.asarray(w_scale), **zeros,
        out_dtype=jnp.float32, implementation=implementation,
    )  # fmt: skip
    x, w = np.asarray(x, np.int64), np.asarray(w, np.int64).reshape(n, groups, -1)
    x = (x - np.asarray(zeros["x_zero"], np.int64) if x_zero else x).reshape(m, groups, -1)
    w = w - np.asarray(zeros["w_zero"], np.int64)[..., None] if w_zero else w
    expected = np.zeros((m, n), np.float32)
    for g in range(groups):
        expected += (x[:, g] @ w[:, g].T).astype(np.float32) * w_scale[0, g]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case[3] == 1])
def test_one_group_of_integers_equals_the_reference_bit_for_bit(implementation, case, dtype):
    args, zeros = operands(*CASES[case], x_zero=True, w_zero=True)
    y, expected = (
        scaled_matmul(*args, **zeros, out_dtype=dtype, implementation=name)
        for name in (implementation, "reference")
    )
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", [np.int8, FP8])
@pytest.mark.parametrize("case", CASES)
def test_it_and_the_reference_are_off_by_the_roundings_of_the_contract_at_most(implementation, case, dtype):
    """Each is 2**-24 of a partial sum. Per group: conversion, scale, sum; at the end row scale and bias.

    Of float8 there is no conversion; k / groups products, exact in float32, are summed in any order.
    """
    m, k, n, groups = CASES[case]
    args, zeros = operands(m, k, n, groups, x_zero=dtype != FP8, w_zero=dtype != FP8, dtype=dtype)
    bias = jnp.linspace(-1, 1, n)
    a, b = exact_terms(*args, **zeros)
    exact, size = a @ b.T + np.asarray(bias), np.abs(a) @ np.abs(b).T + np.abs(np.asarray(bias))
    roundings = groups + 4 + (k // groups if dtype == FP8 else 0)
    for name in (implementation, "reference"):
        y = scaled_matmul(*args, **zeros, bias=bias, out_dtype=jnp.float32, implementation=name)
        assert np.all(np.abs(np.asarray(y, np.float64) - exact) <= roundings * 2.0**-24 * size)


@pytest.mark.parametrize("groups", [1, 4])
def test_float8_sums_of_small_integers_are_exact_in_any_order(implementation, groups):
    """Integers to 16 are float8 numbers, and |sum| <= 2 * 256 * 512 < 2**24."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-16, 17, (rows, 512)) for rows in (5, 24))
    w_scale = np.where(np.arange(groups) % 2, 2, 1).astype(np.float32)[None]
    y = scaled_matmul(
        jnp.asarray(x.astype(FP8)), jnp.asarray(w.astype(FP8)), jnp.ones((1, 1)), jnp.asarray(w_scale),
        out_dtype=jnp.float32, implementation=implementation,
    )  # fmt: skip
    np.testing.assert_array_equal(y, x @ (w * np.repeat(w_scale, 512 // groups, 1)).T)


def test_the_smallest_float8_codes_are_not_lost(implementation):
    """Subnormal ones are multiples of 2**-9."""
    x, w = jnp.full((1, 64), 2.0**-9, FP8), jnp.full((3, 64), 3 * 2.0**-9, FP8)
    one = jnp.ones((1, 1))
    y = scaled_matmul(x, w, one, one, out_dtype=jnp.float32, implementation=implementation)
    np.testing.assert_array_equal(y, np.full((1, 3), 64 * 3 * 2.0**-18))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [np.int8, FP8])
def test_a_row_whose_scale_is_nan_is_nan_and_the_others_are_not(implementation, dtype, groups):
    (x, w, x_scale, w_scale), _ = operands(3, 32, 8, groups, dtype=dtype)
    y = scaled_matmul(x, w, x_scale.at[1].set(jnp.nan), w_scale, implementation=implementation)
    np.testing.assert_array_equal(np.isnan(y.astype(jnp.float32)), [[False] * 8, [True] * 8, [False] * 8])


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case[3] == 1])
def test_a_bias_is_added_in_float32(implementation, case):
    """Product and sum may be fused: their result differs by one rounding of the product, 2**-24 of it."""
    args, _ = operands(*CASES[case])
    bias = jnp.linspace(-50, 50, args[1].shape[0])
    product = np.abs(scaled_matmul(*args, out_dtype=jnp.float32))
    y, expected = (
        scaled_matmul(*args, bias=bias, out_dtype=jnp.float32, implementation=name)
        for name in (implementation, "reference")
    )
    assert np.all(np.abs(y - expected) <= 2.0**-24 * product + np.spacing(np.abs(expected)))


def test_a_bias_is_added_before_the_one_rounding(implementation):
    """A bias cancels 99% of the product; 2**-8 of what is left is far less than 2**-8 of the product."""
    args, _ = operands(1, 1152, 64)
    product = scaled_matmul(*args, out_dtype=jnp.float32)
    bias = -product[0] * 0.99
    y = scaled_matmul(*args, bias=bias, out_dtype=jnp.bfloat16, implementation=implementation)
    left = np.asarray(product, np.float64) + np.asarray(bias, np.float64)
    assert np.all(np.abs(y.astype(jnp.float32) - left) <= 2.0**-8 * np.abs(left) + 2.0**-23 * np.abs(product))


@pytest.mark.parametrize("groups", [1, 3])
def test_given_sums_give_what_computed_sums_give(implementation, groups):
    args, zeros = operands(7, 192, 33, groups, x_zero=True, w_zero=True)
    sums = {
        name: codes.reshape(codes.shape[0], groups, -1).sum(2, dtype=jnp.int32)
        for name, codes in (("x_sum", args[0]), ("w_sum", args[1]))
    }
    with_sums = scaled_matmul(*args, **zeros, **sums, implementation=implementation)
    np.testing.assert_array_equal(with_sums, scaled_matmul(*args, **zeros, implementation=implementation))


def test_scales_that_all_outputs_share_are_as_good_as_one_each(implementation):
    (x, w, x_scale, _), _ = operands(5, 64, 16)
    w_scale, w_zero = jnp.asarray([[0.5, 0.25]]), jnp.asarray([[3, -4]], jnp.int8)
    shared = scaled_matmul(x, w, x_scale, w_scale, w_zero=w_zero, implementation=implementation)
    each = scaled_matmul(
        x, w, x_scale, jnp.tile(w_scale, (16, 1)), w_zero=jnp.tile(w_zero, (16, 1)),
        implementation=implementation,
    )  # fmt: skip
    np.testing.assert_array_equal(shared, each)


def test_the_largest_sum_that_is_allowed_does_not_overflow(implementation):
    k = 33025
    x, w = jnp.full((1, k), -128, jnp.int8), jnp.full((1, k), 127, jnp.int8)
    one, low, high = (
        jnp.ones((1, 1), jnp.float32),
        jnp.full((1, 1), -128, jnp.int8),
        jnp.full((1, 1), 127, jnp.int8),
    )
    y = scaled_matmul(
        x, w, one, one, x_zero=high, w_zero=low, out_dtype=jnp.float32, implementation=implementation
    )
    assert y[0, 0] == np.float32(-255 * 255 * k)
    with pytest.raises(ValueError, match="33025 is the most"):
        scaled_matmul(
            jnp.pad(x, ((0, 0), (0, 1))), jnp.pad(w, ((0, 0), (0, 1))), one, one, x_zero=high, w_zero=low
        )


def test_rows_do_not_influence_each_other(implementation):
    args, zeros = operands(9, 64, 16, w_zero=True)
    y = scaled_matmul(*args, **zeros, implementation=implementation)
    changed = scaled_matmul(args[0].at[4].set(3), *args[1:], **zeros, implementation=implementation)
    np.testing.assert_array_equal(np.delete(y, 4, 0), np.delete(changed, 4, 0))


@pytest.mark.parametrize(
    ("dtype", "dot"),
    [
        (np.int8, "tensor<8x32xi8>, tensor<16x32xi8>) -> tensor<8x16xi32>"),
        (FP8, "tensor<8x32xf8E4M3FN>, tensor<16x32xf8E4M3FN>) -> tensor<8x16xf32>"),
    ],
)
def test_xla_is_given_a_dot_of_the_codes(dtype, dot):
    """An int32 operand would cost several times the time; a float32 one would hide float8 from a GPU."""
    args, _ = operands(8, 32, 16, dtype=dtype)
    text = jax.jit(lambda *a: scaled_matmul(*a, implementation="xla")).lower(*args).as_text()
    assert dot in text
    assert ("precision = [HIGHEST, HIGHEST]" in text) == (dtype == FP8)


def test_operands_that_do_not_go_together_are_refused():
    (x, w, x_scale, w_scale), zeros = operands(3, 64, 8, 2, w_zero=True)
    x8, w8 = x.astype(jnp.float32).astype(FP8), w.astype(jnp.float32).astype(FP8)
    with pytest.raises(ValueError, match="in 3 groups"):
        scaled_matmul(x, w, x_scale, jnp.ones((8, 3)))
    with pytest.raises(ValueError, match="x is float8_e4m3fn and w is int8; quantize both"):
        scaled_matmul(x8, w, x_scale, w_scale)
    with pytest.raises(ValueError, match=r"it is symmetric\. Drop them, or take int8"):
        scaled_matmul(x8, w8, x_scale, w_scale, w_zero=zeros["w_zero"])
