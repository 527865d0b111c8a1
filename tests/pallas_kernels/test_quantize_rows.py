"""Every implementation of quantize_rows against the contract in NumPy, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.quantize_rows.cases import CASES

IMPLEMENTATIONS = dispatch.implementations("quantize_rows")  # the reference is what "xla" runs
GOLDEN = np.asarray([[-1, -0.3, 0, 0.2, 0.55, 1.5]], np.float32)


@pytest.fixture(params=IMPLEMENTATIONS)
def quantize(request):
    return jax.jit(
        lambda x, **options: quantize_rows(x, **options, implementation=request.param),
        static_argnames=("bits", "symmetric", "with_sum"),
    )


def contract(x, bits, symmetric):
    """The docstring in float32 NumPy."""
    x, half, f32 = np.asarray(x, np.float32), 2 ** (bits - 1), np.float32
    if symmetric:
        top, low_code, zero = f32(half - 1), 1 - half, f32(0)
        extent = np.maximum(np.abs(x).max(1, keepdims=True), f32(1e-30))
    else:
        top, low_code = f32(2 * half - 1), -half
        low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
        extent = np.maximum(high - low, f32(1e-30))
        zero = -half - np.round(low * (top / extent))
    codes = np.clip(np.round(x * (top / extent)) + zero, low_code, half - 1)
    return codes, extent * (f32(1) / top), zero


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("case", CASES)
def test_codes_and_scales_are_those_of_the_contract_bit_for_bit(quantize, case, bits, symmetric):
    x = np.random.default_rng(0).standard_normal(CASES[case]).astype(np.float32) * 3
    rows = quantize(jnp.asarray(x), bits=bits, symmetric=symmetric, with_sum=True)
    codes, scale, zero = contract(x, bits, symmetric)
    np.testing.assert_array_equal(rows.codes, codes)
    np.testing.assert_array_equal(rows.scale, scale)
    np.testing.assert_array_equal(rows.sum, codes.sum(1, keepdims=True))
    if symmetric:
        assert rows.zero is None
    else:
        np.testing.assert_array_equal(rows.zero, zero)


@pytest.mark.parametrize(
    ("bits", "symmetric", "scale", "zero", "codes"),
    [
        (8, False, 0.009803922, -26, [-128, -57, -26, -6, 30, 127]),
        (8, True, 0.011811024, None, [-85, -25, 0, 17, 47, 127]),
        (4, False, 0.16666667, -2, [-8, -4, -2, -1, 1, 7]),
        (4, True, 0.21428572, None, [-5, -1, 0, 1, 3, 7]),
    ],
)
def test_golden_row(quantize, bits, symmetric, scale, zero, codes):
    rows = quantize(jnp.asarray(GOLDEN), bits=bits, symmetric=symmetric)
    np.testing.assert_array_equal(rows.codes, [codes])
    np.testing.assert_allclose(rows.scale, scale, rtol=1e-7)
    assert rows.zero is None if zero is None else int(rows.zero[0, 0]) == zero


def test_half_way_values_round_to_even(quantize):
    x = jnp.asarray([[127, 0.5, 1.5, 2.5, -0.5, -1.5]])
    np.testing.assert_array_equal(quantize(x).codes, [[127, 0, 2, 2, 0, -2]])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "row",
    [
        [0.0] * 8,
        [3.0] * 8,
        [-3.0] * 8,
        [1e-3, 2e-3, 5e-3, 1e-3, 0, 0, 0, 1e4],
        [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
        [-0.5, -1.0, -1.5, -2.0, -2.5, -3.0, -3.5, -4.0],
        [1e-38] * 8,
        [3e38] * 4 + [0.0] * 4,
    ],
    ids=[
        "zero",
        "constant",
        "negative constant",
        "huge token",
        "positive",
        "negative",
        "tiny",
        "near overflow",
    ],
)
def test_degenerate_rows_are_finite_and_off_by_half_a_scale_at_most(quantize, row, symmetric):
    rows = quantize(jnp.asarray([row], jnp.float32), symmetric=symmetric)
    scale = float(rows.scale[0, 0])
    assert 0 < scale < np.inf
    zero = 0 if rows.zero is None else int(rows.zero[0, 0])
    error = (np.asarray(rows.codes, np.float64) - zero) * scale - np.asarray([row])
    # half a step, and what the reciprocal and the scale were rounded by: 2 roundings of up to 255 steps
    assert np.all(np.abs(error) <= (0.5 + 2 * 255 * 2.0**-23) * scale)
    if row == [0.0] * 8:
        np.testing.assert_array_equal(rows.codes, zero)


def test_one_zero_row_leaves_the_scales_of_the_others(quantize):
    x = jnp.asarray([[0.0, 0, 0], [1, 2, 127], [0, 0, 0]])
    np.testing.assert_array_equal(quantize(x).scale[1], [np.float32(127) * np.float32(1 / 127)])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gets_the_scale_nan_and_others_are_untouched(quantize, bad, symmetric):
    x = jnp.ones((3, 40)).at[1, 17].set(bad)
    rows = quantize(x, symmetric=symmetric)
    assert np.isnan(rows.scale[1, 0])
    np.testing.assert_array_equal(rows.codes[1], 0)
    clean = quantize(jnp.ones((3, 40)), symmetric=symmetric)
    np.testing.assert_array_equal(rows.codes[::2], clean.codes[::2])
    np.testing.assert_array_equal(rows.scale[::2], clean.scale[::2])


@pytest.mark.parametrize("rows", [1, 7, 129])
def test_rows_do_not_influence_each_other(quantize, rows):
    x = jax.random.normal(jax.random.key(0), (rows, 50))
    together = quantize(x, symmetric=False)
    alone = [quantize(x[i : i + 1], symmetric=False) for i in range(rows)]
    np.testing.assert_array_equal(together.codes, jnp.concatenate([row.codes for row in alone]))
    np.testing.assert_array_equal(together.scale, jnp.concatenate([row.scale for row in alone]))


def test_bfloat16_rows_are_quantized_as_their_float32_values(quantize):
    x = jax.random.normal(jax.random.key(0), (5, 64)).astype(jnp.bfloat16)
    a, b = quantize(x), quantize(x.astype(jnp.float32))
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.scale, b.scale)


def test_a_static_scale_is_the_value_of_one_step_and_larger_inputs_saturate(quantize):
    x = jnp.asarray([[0.5, -1.0, 63.5, 64.0, -1000.0, np.nan, np.inf]])
    rows = quantize(x, scale=jnp.asarray([[0.5]]))
    np.testing.assert_array_equal(rows.codes, [[1, -2, 127, 127, -127, 0, 127]])
    shifted = quantize(x, scale=jnp.asarray([[0.5]]), zero=jnp.asarray([[-28]], jnp.int8), symmetric=False)
    np.testing.assert_array_equal(shifted.codes, [[-27, -30, 99, 100, -128, -28, 127]])


def test_contradicting_options_are_refused():
    x, scale, zero = jnp.ones((1, 4)), jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int8)
    with pytest.raises(ValueError, match="choose 2 to 8"):
        quantize_rows(x, bits=9)
    with pytest.raises(ValueError, match="goes with a given scale"):
        quantize_rows(x, zero=zero, symmetric=False)
    with pytest.raises(ValueError, match="give its zero point"):
        quantize_rows(x, scale=scale, symmetric=False)
