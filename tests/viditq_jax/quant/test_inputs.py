"""Inputs to codes, by each of the ways in which inputs may share a scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.quantize_rows import quantize_rows
from viditq_jax.quant.inputs import quantize_input as plain_quantize_input
from viditq_jax.quant.inputs import static_scale
from viditq_jax.quant.spec import Spec

quantize_input = jax.jit(plain_quantize_input, static_argnames=("act", "with_sum"))
INPUTS = [
    "int8/token", "int8/token/asym", "int4/token", "fp8/token", "int8/tensor/static",
    "int8/tensor/asym/static/range", "fp8/tensor/static", "int8/position", "int8/position/asym",
    "int4/position/asym",
]  # fmt: skip
GOLDEN = jnp.asarray([-1, -0.3, 0, 0.2, 0.55, 1.5])


def quantized(x, text, **options):
    """The rows of x; a static scale is that of x itself."""
    act = Spec.parse(text)
    given = static_scale(act, x.min(), x.max()) if act.static else ()
    return quantize_input(x, act, *given, **options)


def values(rows):
    zero = 0 if rows.zero is None else np.asarray(rows.zero, np.float64)
    return (np.asarray(rows.codes, np.float64) - zero) * np.asarray(rows.scale, np.float64)


def half_a_step(x, rows):
    """Of integers half a scale, of float8 a 16th of the number; 2**-14 covers the roundings of the scale."""
    scale = np.asarray(rows.scale, np.float64)
    if rows.codes.dtype == jnp.int8:
        return scale * (0.5 + 2.0**-14)
    return np.maximum(np.abs(x) / 16, scale / 1024) * (1 + 2.0**-14)


@pytest.mark.parametrize("text", INPUTS)
@pytest.mark.parametrize("shape", [(2, 7, 24), (7, 24), (24,), (2, 3, 5, 24)])
def test_leading_axes_become_rows_and_no_input_is_off_by_more_than_half_a_step(text, shape):
    x = jax.random.normal(jax.random.key(0), shape) * 3 + 1
    rows, flat = quantized(x, text), np.asarray(x, np.float64).reshape(-1, 24)
    assert rows.codes.shape == flat.shape
    assert rows.codes.dtype == Spec.parse(text).dtype
    assert np.all(np.abs(values(rows) - flat) <= half_a_step(flat, rows))


@pytest.mark.parametrize("text", INPUTS)
def test_degenerate_tokens_are_finite_and_within_half_a_step(text):
    """Zero, constant, of one sign, one huge number, subnormal."""
    x = jnp.stack([
        jnp.zeros(8), jnp.full(8, 3.0), jnp.full(8, -3.0), jnp.arange(1.0, 9.0), -jnp.arange(1.0, 9.0),
        jnp.full(8, 1e-3).at[5].set(1e4), jnp.full(8, 1e-42),
    ])  # fmt: skip
    for batch in (x[None], jnp.stack([x, 0.5 * x])):
        rows, flat = quantized(batch, text), np.asarray(batch, np.float64).reshape(-1, 8)
        assert np.all((np.asarray(rows.scale) > 0) & np.isfinite(rows.scale))
        assert np.all(np.abs(values(rows) - flat) <= half_a_step(flat, rows))
        np.testing.assert_array_equal(values(rows)[0], 0)


@pytest.mark.parametrize("text", INPUTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_token_that_is_not_finite_has_the_scale_nan_alone_or_with_those_of_its_position(text, bad):
    x = jnp.ones((2, 3, 8))
    act = Spec.parse(text)
    given = static_scale(act, x.min(), x.max()) if act.static else ()
    rows = quantize_input(x.at[0, 1, 4].set(bad), act, *given)
    spoiled = [1, 4] if "position" in text else [1]
    scale = np.broadcast_to(rows.scale, (6, 1))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scale)), spoiled)
    clean = quantize_input(x, act, *given)
    np.testing.assert_array_equal(
        np.delete(np.asarray(rows.codes, np.float32), spoiled, 0),
        np.delete(np.asarray(clean.codes, np.float32), spoiled, 0),
    )


@pytest.mark.parametrize(
    ("text", "scale", "zero", "codes"),
    [
        ("int8/position/asym", 0.009803922, -26, [-128, -57, -26, -6, 30, 127]),
        ("int8/position", 0.011811024, None, [-85, -25, 0, 17, 47, 127]),
        ("int4/position/asym", 0.16666667, -2, [-8, -4, -2, -1, 1, 7]),
        ("int4/position", 0.21428572, None, [-5, -1, 0, 1, 3, 7]),
    ],
)
def test_a_position_has_one_step_for_all_samples_as_the_released_code_has(text, scale, zero, codes):
    """The numbers of one row, spread over three samples: the range is that of all."""
    x = GOLDEN.reshape(3, 1, 2)
    x = jnp.concatenate([x, 100 * x], axis=1)  # a second position, that changes nothing in the first
    rows = quantize_input(x, Spec.parse(text))
    np.testing.assert_array_equal(rows.codes.reshape(3, 2, 2)[:, 0].ravel(), codes)
    np.testing.assert_allclose(rows.scale.reshape(3, 2), np.tile([[scale, 100 * scale]], (3, 1)), rtol=1e-6)
    if zero is not None:
        np.testing.assert_array_equal(rows.zero, np.full((6, 1), zero))


@pytest.mark.parametrize("suffix", ["", "/asym"])
def test_with_one_sample_a_position_is_a_token(suffix):
    """But for codes that the two formulas of a step, top / range and 1 / scale, round to different sides."""
    x = jax.random.normal(jax.random.key(0), (1, 50, 64))
    a, b = (quantize_input(x, Spec.parse(f"int8/{where}{suffix}")) for where in ("position", "token"))
    np.testing.assert_array_equal(a.scale, b.scale)
    assert np.max(np.abs(np.asarray(a.codes, np.int32) - b.codes)) <= 1
    assert np.mean(np.asarray(a.codes) != b.codes) < 1e-3


def test_rows_without_a_batch_axis_each_have_a_step_of_their_own():
    x = jnp.asarray([[1.0, 2, 3], [10, 20, 30]])
    np.testing.assert_allclose(quantize_input(x, Spec.parse("int8/position")).scale, [[3 / 127], [30 / 127]])


@pytest.mark.parametrize("text", ["int8/token", "int8/token/asym", "fp8/token"])
def test_tokens_do_not_influence_each_other(text):
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    rows, changed = (quantize_input(values, Spec.parse(text)) for values in (x, x.at[1, 3].multiply(100)))
    np.testing.assert_array_equal(np.delete(rows.codes, 8, 0), np.delete(changed.codes, 8, 0))
    np.testing.assert_array_equal(np.delete(rows.scale, 8, 0), np.delete(changed.scale, 8, 0))


@pytest.mark.parametrize("text", ["int8/token/asym", "int8/tensor/static", "int8/position"])
def test_sums_are_those_of_the_codes(text):
    rows = quantized(jax.random.normal(jax.random.key(0), (2, 5, 16)), text, with_sum=True)
    np.testing.assert_array_equal(rows.sum, np.asarray(rows.codes, np.int64).sum(1, keepdims=True))


@pytest.mark.parametrize("text", ["int8/tensor/static", "int8/tensor/asym/static", "fp8/tensor/static"])
def test_a_static_scale_is_that_of_a_row_with_these_extremes(text):
    act = Spec.parse(text)
    x = GOLDEN[None]
    scale, zero = static_scale(act, x.min(), x.max())
    row = quantize_rows(x, bits=act.bits, symmetric=act.symmetric, dtype=act.dtype)
    np.testing.assert_array_equal(scale, row.scale)
    np.testing.assert_array_equal(-1 if zero is None else zero, -1 if row.zero is None else row.zero)


def test_ranges_may_be_given_together_or_one_by_one():
    act = Spec.parse("int8/tensor/asym/static/range")
    low, high = jnp.asarray([-1.0, -4.0, 0.5]), jnp.asarray([3.0, 1.0, 2.0])
    together = static_scale(act, low, high)
    each = [static_scale(act, low[r], high[r]) for r in range(3)]
    for all_ranges, single in zip(together, zip(*each, strict=True), strict=True):
        assert single[0].shape == (1, 1)
        np.testing.assert_array_equal(all_ranges, jnp.concatenate(single))


def test_inputs_that_were_never_seen_have_the_static_scale_nan():
    scale, _ = static_scale(Spec.parse("int8/tensor/static"), jnp.float32(np.inf), jnp.float32(-np.inf))
    assert np.isnan(scale[0, 0])


def test_a_missing_or_superfluous_scale_and_a_format_of_weights_are_refused():
    x, scale = jnp.ones((2, 4)), jnp.ones((1, 1))
    with pytest.raises(ValueError, match="needed and not given"):
        quantize_input(x, Spec.parse("int8/tensor/static"))
    with pytest.raises(ValueError, match="given and is not used"):
        quantize_input(x, Spec.parse("int8/token"), scale)
    with pytest.raises(ValueError, match="is for weights; inputs are int8/token"):
        quantize_input(x, Spec.parse("int8/channel"))
