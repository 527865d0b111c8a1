"""Numbers to codes and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.quant.qtensor import QTensor, quantize_tensor
from viditq_jax.quant.spec import Spec

GOLDEN = jnp.asarray([[-1, -0.3, 0, 0.2, 0.55, 1.5]])
WEIGHTS = ["int8/channel", "int8/channel/asym", "int8/tensor", "int6/channel/asym", "int3/channel"]
PACKED = [
    "int4/channel",
    "int4/channel/asym",
    "int4/tensor/asym",
    "int4/group32",
    "int4/group64/asym",
    "int2/group128",
]


def half_a_scale(q: QTensor) -> np.ndarray:
    """The bound of each error; 2**-14 covers what 255 steps lose in the roundings of the scale."""
    columns = q.shape[1] // q.scale.shape[1]
    return np.broadcast_to(np.repeat(np.asarray(q.scale), columns, 1) * (0.5 + 2.0**-14), q.shape)


@pytest.mark.parametrize(
    ("text", "scale", "zero", "codes"),
    [
        ("int8/channel/asym", 0.009803922, -26, [-128, -57, -26, -6, 30, 127]),
        ("int8/channel", 0.011811024, None, [-85, -25, 0, 17, 47, 127]),
        ("int4/channel/asym", 0.16666667, -2, [-8, -4, -2, -1, 1, 7]),
        ("int4/channel", 0.21428572, None, [-5, -1, 0, 1, 3, 7]),
    ],
)
def test_golden_row(text, scale, zero, codes):
    q = quantize_tensor(GOLDEN, Spec.parse(text))
    np.testing.assert_array_equal(q.codes(), [codes])
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
    back = quantize_tensor(GOLDEN, Spec.parse(text)).dequantize()
    np.testing.assert_allclose(back, [values], atol=5.1e-5)  # four decimals are given


@pytest.mark.parametrize("text", WEIGHTS + PACKED)
def test_the_error_is_half_a_scale_at_most(text):
    x = jax.random.normal(jax.random.key(0), (6, 256)) * jnp.logspace(-3, 3, 6)[:, None]
    q = quantize_tensor(x, Spec.parse(text))
    assert q.shape == x.shape
    assert np.all(np.abs(q.dequantize() - x) <= half_a_scale(q))


@pytest.mark.parametrize("text", WEIGHTS + PACKED)
def test_groups_that_are_zero_constant_or_of_one_sign_are_finite_and_leave_the_others_alone(text):
    """A small step of one group once became the step of all (D2); a zero group once gave NaN (D11)."""
    x = jax.random.normal(jax.random.key(0), (6, 256))
    odd = x.at[0].set(0).at[1].set(0.3).at[2].set(-5).at[3].set(jnp.abs(x[3])).at[4].set(1e-12 * x[4])
    q, plain = (quantize_tensor(values, Spec.parse(text)) for values in (odd, x))
    assert np.all(np.isfinite(q.scale))
    assert np.all(np.asarray(q.scale) > 0)
    assert np.all(np.abs(q.dequantize() - odd) <= half_a_scale(q))
    np.testing.assert_array_equal(q.dequantize()[0], 0)
    if "tensor" not in text:
        np.testing.assert_array_equal(q.dequantize()[5], plain.dequantize()[5])


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


def test_six_bits_take_a_byte():
    q = quantize_tensor(jnp.ones((6, 256)), Spec.parse("int6/channel"))
    assert q.values.dtype == jnp.int8
    assert q.values.nbytes == 6 * 256


def test_a_qtensor_passes_through_jit_and_tree_map_with_its_spec():
    q = quantize_tensor(GOLDEN, Spec.parse("int4/channel/asym"))
    through = jax.jit(lambda q: jax.tree.map(lambda leaf: leaf, q))(q)
    assert through.spec == q.spec
    np.testing.assert_array_equal(through.dequantize(), q.dequantize())


@pytest.mark.parametrize(("text", "k"), [("int4/group128", 192), ("int4/group64", 96), ("int4/channel", 7)])
def test_a_shape_that_does_not_fit_is_refused(text, k):
    with pytest.raises(ValueError, match=f"{text}.*{k}"):
        quantize_tensor(jnp.ones((2, k)), Spec.parse(text))
