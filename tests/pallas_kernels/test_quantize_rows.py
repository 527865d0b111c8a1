"""Every implementation of quantize_rows against the contract in NumPy, and its properties."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.quantize_rows.cases import CASES
from tests.pallas_kernels.unsupported import skip_unsupported

jitted = jax.jit(quantize_rows, static_argnames=("bits", "symmetric", "dtype", "with_sum", "implementation"))
IMPLEMENTATIONS = dispatch.implementations("quantize_rows")  # the reference is what "xla" runs
GOLDEN = np.asarray([[-1, -0.3, 0, 0.2, 0.55, 1.5]], np.float32)
FP8 = jnp.float8_e4m3fn
FORMATS = {
    "int8": {},
    "int8 asym": {"symmetric": False},
    "int4": {"bits": 4},
    "int4 asym": {"bits": 4, "symmetric": False},
    "int3": {"bits": 3},
    "fp8": {"dtype": FP8},
}


@pytest.fixture(params=IMPLEMENTATIONS)
def quantize(request):
    return skip_unsupported(functools.partial(jitted, implementation=request.param))


@pytest.fixture(params=FORMATS)
def options(request):
    return FORMATS[request.param]


def contract(x, bits=8, symmetric=True, dtype=jnp.int8):
    """The docstring in float32 NumPy."""
    x, half, f32 = np.asarray(x, np.float32), 2 ** (bits - 1), np.float32
    if symmetric:
        top, zero = f32(half - 1 if dtype == jnp.int8 else 448), f32(0)
        low_code = -top
        extent = np.maximum(np.abs(x).max(1, keepdims=True), f32(1e-30))
    else:
        top, low_code = f32(2 * half - 1), -half
        low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
        extent = np.maximum(high - low, f32(1e-30))
        zero = -half - np.round(low * (top / extent))
    levels = x * (top / extent)
    codes = np.clip((np.round(levels) if dtype == jnp.int8 else levels) + zero, low_code, low_code + 2 * top)
    return codes.astype(dtype), extent * (f32(1) / top), zero


def largest_error(x, scale, dtype=jnp.int8):
    """Half a step: of the integers, or of the float8 that x is between.

    Both with 2**-14 of a step for what 255 steps lose in the roundings of the reciprocal and the scale. A
    float8 has four bits, so half a step is at most 2**-4 of it; below 2**-6, the smallest normal one, a step
    is 2**-9.
    """
    return (
        scale * (0.5 + 2.0**-14)
        if dtype == jnp.int8
        else np.maximum(np.abs(x) / 16, scale / 1024) * (1 + 2.0**-14)
    )


@pytest.mark.parametrize("case", CASES)
def test_codes_and_scales_are_those_of_the_contract_bit_for_bit(quantize, options, case):
    x = np.random.default_rng(0).standard_normal(CASES[case]).astype(np.float32) * 3
    rows = quantize(jnp.asarray(x), **options)
    codes, scale, zero = contract(x, **options)
    assert rows.codes.dtype == options.get("dtype", jnp.int8)
    np.testing.assert_array_equal(rows.codes, codes)
    np.testing.assert_array_equal(rows.scale, scale)
    if options.get("symmetric", True):
        assert rows.zero is None
    else:
        np.testing.assert_array_equal(rows.zero, zero)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_sum_is_that_of_the_codes_of_its_row(quantize, symmetric):
    rows = quantize(jax.random.normal(jax.random.key(0), (5, 300)), symmetric=symmetric, with_sum=True)
    np.testing.assert_array_equal(rows.sum, np.asarray(rows.codes, np.int64).sum(1, keepdims=True))


@pytest.mark.parametrize(
    ("name", "scale", "zero", "codes"),
    [
        ("int8 asym", 0.009803922, -26, [-128, -57, -26, -6, 30, 127]),
        ("int8", 0.011811024, None, [-85, -25, 0, 17, 47, 127]),
        ("int4 asym", 0.16666667, -2, [-8, -4, -2, -1, 1, 7]),
        ("int4", 0.21428572, None, [-5, -1, 0, 1, 3, 7]),
        ("fp8", 0.0033482143, None, [-288, -88, 0, 60, 160, 448]),
    ],
)
def test_golden_row(quantize, name, scale, zero, codes):
    """Integers: as the released code gives them, whose second generation names minus our zero point.

    float8: x / scale is -298.7, -89.6, 0, 59.7, 164.3, 448, where steps are 32, 8, -, 4, 16, 32.
    """
    rows = quantize(jnp.asarray(GOLDEN), **FORMATS[name])
    np.testing.assert_array_equal(np.asarray(rows.codes, np.float32), [codes])
    np.testing.assert_allclose(rows.scale, scale, rtol=1e-7)
    assert rows.zero is None if zero is None else int(rows.zero[0, 0]) == zero


@pytest.mark.parametrize(
    ("name", "first_generation_zero", "first_generation_codes"),
    [("int8 asym", 102, [0, 71, 102, 122, 158, 255]), ("int4 asym", 6, [0, 4, 6, 7, 9, 15])],
)
def test_unsigned_codes_of_the_released_first_generation_are_ours_shifted_by_half_their_number(
    quantize, name, first_generation_zero, first_generation_codes
):
    rows = quantize(jnp.asarray(GOLDEN), **FORMATS[name])
    half = 2 ** (FORMATS[name].get("bits", 8) - 1)
    np.testing.assert_array_equal(np.asarray(rows.codes, np.int32) + half, [first_generation_codes])
    assert int(rows.zero[0, 0]) + half == first_generation_zero


def test_half_way_values_round_to_even(quantize):
    x = jnp.asarray([[127, 0.5, 1.5, 2.5, -0.5, -1.5]])
    np.testing.assert_array_equal(quantize(x).codes, [[127, 0, 2, 2, 0, -2]])
    # between 16, 18 and 20; 416 and 448, whose last of four bits are 1 and 0; 0 and the smallest, 2**-9
    x = jnp.asarray([[448, 17.0, 19.0, -17.0, 432, 2.0**-10]])
    np.testing.assert_array_equal(quantize(x, dtype=FP8).codes, np.asarray([[448, 16, 20, -16, 448, 0]], FP8))


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
        [1e-42] * 8,
        [1e38] * 4 + [0.0] * 4,
    ],
    ids=["zero", "constant", "negative constant", "huge token", "positive", "negative", "tiny", "subnormal", "near overflow"],  # noqa: E501
)  # fmt: skip
def test_degenerate_rows_are_finite_and_off_by_half_a_step_at_most(quantize, options, row):
    rows = quantize(jnp.asarray([row], jnp.float32), **options)
    scale = float(rows.scale[0, 0])
    assert 0 < scale < np.inf
    zero = 0 if rows.zero is None else int(rows.zero[0, 0])
    error = (np.asarray(rows.codes, np.float64) - zero) * scale - np.asarray([row])
    assert np.all(np.abs(error) <= largest_error(np.asarray([row]), scale, options.get("dtype", jnp.int8)))
    if row == [0.0] * 8:
        np.testing.assert_array_equal(np.asarray(rows.codes, np.float32), zero)


def test_one_zero_row_leaves_the_scales_of_the_others(quantize):
    x = jnp.asarray([[0.0, 0, 0], [1, 2, 127], [0, 0, 0]])
    np.testing.assert_array_equal(quantize(x).scale[1], [np.float32(127) * np.float32(1 / 127)])


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gets_the_scale_nan_and_others_are_untouched(quantize, options, bad, static):
    """A NaN in a row of static codes once became the code of zero under a scale that hid it."""
    given = {"scale": jnp.asarray([[0.02]])} if static else {}
    if static and not options.get("symmetric", True):
        given["zero"] = jnp.asarray([[3]], jnp.int8)
    rows = quantize(jnp.ones((3, 40)).at[1, 17].set(bad), **options, **given)
    assert np.isnan(rows.scale[1, 0])
    assert np.all(np.isfinite(np.asarray(rows.codes, np.float32)))
    if not static:
        np.testing.assert_array_equal(np.asarray(rows.codes[1], np.float32), 0)
    clean = quantize(jnp.ones((3, 40)), **options, **given)
    np.testing.assert_array_equal(rows.codes[::2], clean.codes[::2])
    np.testing.assert_array_equal(rows.scale[::2], clean.scale[::2])
    assert np.all(np.isfinite(clean.scale))


def test_a_range_whose_scale_has_no_normal_reciprocal_gives_the_scale_nan(quantize):
    """XLA may flush it to 0, and then every code would be 0 under a finite scale."""
    x = jnp.asarray([[2.0**125, 0], [2.0**126, 0]])
    np.testing.assert_array_equal(np.isnan(quantize(x, bits=2).scale), [[False], [True]])
    np.testing.assert_array_equal(quantize(x, bits=2).codes, [[1, 0], [0, 0]])


def test_rows_do_not_influence_each_other(quantize, options):
    x = np.random.default_rng(0).standard_normal((129, 50)).astype(np.float32)
    together = quantize(jnp.asarray(x), **options)
    for i in (0, 6, 128):
        alone = quantize(jnp.asarray(x[i : i + 1]), **options)
        np.testing.assert_array_equal(together.codes[i], alone.codes[0])
        np.testing.assert_array_equal(together.scale[i], alone.scale[0])


def test_bfloat16_rows_are_quantized_as_their_float32_values(quantize, options):
    x = jax.random.normal(jax.random.key(0), (5, 64)).astype(jnp.bfloat16)
    a, b = quantize(x, **options), quantize(x.astype(jnp.float32), **options)
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.scale, b.scale)


def test_a_static_scale_is_the_value_of_one_step_and_larger_inputs_saturate(quantize):
    x = jnp.asarray([[0.5, -1.0, 63.5, 64.0, -1000.0, 3e38]])
    rows = quantize(x, scale=jnp.asarray([[0.5]]))
    np.testing.assert_array_equal(rows.codes, [[1, -2, 127, 127, -127, 127]])
    np.testing.assert_array_equal(rows.scale, [[0.5]])
    shifted = quantize(x, scale=jnp.asarray([[0.5]]), zero=jnp.asarray([[-28]], jnp.int8), symmetric=False)
    np.testing.assert_array_equal(shifted.codes, [[-27, -30, 99, 100, -128, 127]])
    small = quantize(x, scale=jnp.asarray([[0.5]]), bits=4)
    np.testing.assert_array_equal(small.codes, [[1, -2, 7, 7, -7, 7]])


def test_static_float8_codes_saturate_at_448(quantize):
    """The conversion alone would make NaN of all that is above 464."""
    x = jnp.asarray([[0.5, -1.0, 224.0, 231.9, 240.0, -1000.0, 3e38]])
    rows = quantize(x, scale=jnp.asarray([[0.5]]), dtype=FP8)
    np.testing.assert_array_equal(np.asarray(rows.codes, np.float32), [[1, -2, 448, 448, 448, -448, 448]])


def test_rows_may_each_have_a_given_scale(quantize):
    rows = quantize(jnp.ones((2, 3)), scale=jnp.asarray([[0.5], [0.25]]))
    np.testing.assert_array_equal(rows.codes, [[2, 2, 2], [4, 4, 4]])
    np.testing.assert_array_equal(rows.scale, [[0.5], [0.25]])


def test_contradicting_options_are_refused():
    x, scale, zero = jnp.ones((1, 4)), jnp.ones((1, 1)), jnp.zeros((1, 1), jnp.int8)
    with pytest.raises(ValueError, match="choose 2 to 8"):
        quantize_rows(x, bits=9)
    with pytest.raises(ValueError, match="goes with a given scale"):
        quantize_rows(x, zero=zero, symmetric=False)
    with pytest.raises(ValueError, match="give its zero point"):
        quantize_rows(x, scale=scale, symmetric=False)
    with pytest.raises(ValueError, match=r"int16.*choose int8 or float8_e4m3fn"):
        quantize_rows(x, dtype=jnp.int16)
    for options in ({"bits": 4}, {"symmetric": False}, {"with_sum": True}):
        with pytest.raises(ValueError, match="Leave these options out, or take int8"):
            quantize_rows(x, dtype=FP8, **options)
