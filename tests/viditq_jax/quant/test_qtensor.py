"""Numbers to codes and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.quant.qtensor import QTensor
from viditq_jax.quant.qtensor import quantize_tensor as plain_quantize_tensor
from viditq_jax.quant.spec import Spec

quantize_tensor = jax.jit(plain_quantize_tensor, static_argnames="spec")
dequantize = jax.jit(QTensor.dequantize)
GOLDEN = jnp.asarray([[-1, -0.3, 0, 0.2, 0.55, 1.5]])
WEIGHTS = [
    "int8/channel",
    "int8/channel/asym",
    "int8/tensor",
    "int6/channel/asym",
    "int8/group64",
    "int8/group128/asym",
    "int5/group32/asym",
    "fp8/channel",
    "fp8/tensor",
]
PACKED = [
    "int3/channel",
    "int4/channel",
    "int4/channel/asym",
    "int4/tensor/asym",
    "int4/group32",
    "int4/group64/asym",
    "int2/group128",
]


def half_a_step(q: QTensor, x: jax.Array) -> np.ndarray:
    """The bound of each error; 2**-14 covers what 255 steps lose in the roundings of the scale.

    A float8 has four bits, so half a step is at most 2**-4 of it; the smallest step is 2**-9 of the scale.
    """
    columns = q.shape[1] // q.scale.shape[1]
    scale = np.broadcast_to(np.repeat(np.asarray(q.scale, np.float64), columns, 1), q.shape)
    if q.spec.kind == "int":
        return scale * (0.5 + 2.0**-14)
    return np.maximum(np.abs(np.asarray(x, np.float64)) / 16, scale / 1024) * (1 + 2.0**-14)


@pytest.mark.parametrize(
    ("text", "scale", "zero", "codes"),
    [
        ("int8/channel/asym", 0.009803922, -26, [-128, -57, -26, -6, 30, 127]),
        ("int8/channel", 0.011811024, None, [-85, -25, 0, 17, 47, 127]),
        ("int4/channel/asym", 0.16666667, -2, [-8, -4, -2, -1, 1, 7]),
        ("int4/channel", 0.21428572, None, [-5, -1, 0, 1, 3, 7]),
        ("fp8/channel", 0.0033482143, None, [-288, -88, 0, 60, 160, 448]),
    ],
)
def test_golden_row(text, scale, zero, codes):
    q = quantize_tensor(GOLDEN, Spec.parse(text))
    np.testing.assert_array_equal(np.asarray(q.codes(), np.float32), [codes])
    np.testing.assert_allclose(q.scale, scale, rtol=1e-7)
    assert q.zero is None if zero is None else int(q.zero[0, 0]) == zero


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("int4/channel/asym", [-1, -0.3333, 0, 0.1667, 0.5, 1.5]),
        ("int8/channel/asym", [-1, -0.3039, 0, 0.1961, 0.5490, 1.5]),
    ],
)
def test_golden_row_comes_back(text, values):
    back = dequantize(quantize_tensor(GOLDEN, Spec.parse(text)))
    np.testing.assert_allclose(back, [values], atol=5.1e-5)  # four decimals are given


@pytest.mark.parametrize("text", WEIGHTS + PACKED)
def test_the_error_is_half_a_step_at_most(text):
    x = jax.random.normal(jax.random.key(0), (6, 256)) * jnp.logspace(-3, 3, 6)[:, None]
    q = quantize_tensor(x, Spec.parse(text))
    assert q.shape == x.shape
    assert np.all(np.abs(np.asarray(dequantize(q), np.float64) - x) <= half_a_step(q, x))


@pytest.mark.parametrize("text", WEIGHTS + PACKED)
def test_groups_that_are_zero_constant_or_of_one_sign_are_finite_and_leave_the_others_alone(text):
    """A small step of one group once became the step of all (D2); a zero group once gave NaN (D11)."""
    x = jax.random.normal(jax.random.key(0), (6, 256))
    odd = x.at[0].set(0).at[1].set(0.3).at[2].set(-5).at[3].set(jnp.abs(x[3])).at[4].set(1e-12 * x[4])
    q, plain = (quantize_tensor(values, Spec.parse(text)) for values in (odd, x))
    assert np.all(np.isfinite(q.scale))
    assert np.all(np.asarray(q.scale) > 0)
    assert np.all(np.abs(np.asarray(dequantize(q), np.float64) - odd) <= half_a_step(q, odd))
    np.testing.assert_array_equal(dequantize(q)[0], 0)
    if "tensor" not in text:
        np.testing.assert_array_equal(dequantize(q)[5], dequantize(plain)[5])


@pytest.mark.parametrize("text", WEIGHTS + PACKED)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_makes_nan_of_its_group_and_of_no_other(text, bad):
    x = jax.random.normal(jax.random.key(0), (3, 256))
    q, plain = (quantize_tensor(values, Spec.parse(text)) for values in (x.at[1, 5].set(bad), x))
    size = {"group": q.spec.group, "channel": 256, "tensor": 3 * 256}[q.spec.granularity]
    spoiled = np.isnan(dequantize(q))
    assert spoiled.sum() == size
    assert spoiled[1, 5]
    np.testing.assert_array_equal(np.asarray(dequantize(q))[~spoiled], dequantize(plain)[~spoiled])


def test_two_hundred_and_fifty_six_levels_in_groups_are_closer_than_in_channels():
    """One outlier a row spoils its group alone: the rest keeps a step of its own."""
    x = jax.random.normal(jax.random.key(0), (8, 256)).at[:, 7].set(100)
    error = {
        text: np.abs(dequantize(quantize_tensor(x, Spec.parse(text))) - x)[:, 64:].max()
        for text in ("int8/channel", "int8/group64")
    }
    assert error["int8/group64"] < error["int8/channel"] / 10


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("suffix", ["", "/asym"])
def test_codes_stay_in_their_range_at_all_bits(bits, suffix):
    """Asymmetric codes once clipped at twice their range (D7); bits were once the last of a list (D19)."""
    q = quantize_tensor(
        jax.random.normal(jax.random.key(0), (3, 64)), Spec.parse(f"int{bits}/channel{suffix}")
    )
    top = 2 ** (bits - 1) - 1
    codes = np.asarray(q.codes(), np.int32)
    assert codes.min() >= (-top - 1 if suffix else -top)
    assert codes.max() <= top
    assert codes.max() - codes.min() >= top  # and the range is used


@pytest.mark.parametrize("text", PACKED)
def test_four_bit_codes_take_half_a_byte(text):
    q = quantize_tensor(jnp.ones((6, 256)), Spec.parse(text))
    assert q.values.dtype == jnp.uint8
    assert q.values.nbytes == 6 * 128


@pytest.mark.parametrize("text", WEIGHTS)
def test_other_codes_take_a_byte(text):
    q = quantize_tensor(jnp.ones((6, 256)), Spec.parse(text))
    assert q.values.dtype == (jnp.float8_e4m3fn if text.startswith("fp8") else jnp.int8)
    assert q.values.nbytes == 6 * 256
    assert q.zero is None or q.zero.shape == q.scale.shape


def test_a_qtensor_passes_through_jit_and_tree_map_with_its_spec():
    q = quantize_tensor(GOLDEN, Spec.parse("int4/channel/asym"))
    through = jax.jit(lambda q: jax.tree.map(lambda leaf: leaf, q))(q)
    assert through.spec == q.spec
    np.testing.assert_array_equal(through.dequantize(), dequantize(q))


def test_a_format_of_inputs_is_refused():
    with pytest.raises(ValueError, match=r"int8/token is for inputs; a weight is int8/channel"):
        quantize_tensor(jnp.ones((2, 4)), Spec.parse("int8/token"))


@pytest.mark.parametrize(
    ("text", "k"), [("int4/group128", 192), ("int4/group64", 96), ("int8/group64", 96), ("int4/channel", 7)]
)
def test_a_shape_that_does_not_fit_is_refused(text, k):
    with pytest.raises(ValueError, match=f"{text}.*{k}"):
        quantize_tensor(jnp.ones((2, k)), Spec.parse(text))
