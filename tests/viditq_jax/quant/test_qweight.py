"""What a quantized linear layer computes: the product of its dequantized operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.quantize_rows import quantize_rows
from viditq_jax.nn.linear import linear
from viditq_jax.quant.qtensor import quantize_tensor
from viditq_jax.quant.qweight import quantized_weight
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats

WEIGHTS = ["int8/channel", "int8/channel/asym", "int8/tensor/asym", "int6/channel", "int4/channel/asym", "int4/tensor/asym", "int4/group32", "int4/group64/asym", "int8/group64/asym"]  # fmt: skip  # noqa: E501
INPUTS = ["int8/token", "int8/token/asym", "int6/token", "int8/tensor/static", "int8/tensor/asym/static"]
K, N = 128, 24


def layer(weight_text, act_text, seed=0):
    """A weight, its quantized form, and inputs with one outlier channel."""
    keys = jax.random.split(jax.random.key(seed), 2)
    weight = jax.random.normal(keys[0], (N, K)) + 0.2
    x = (jax.random.normal(keys[1], (2, 7, K)) + 0.5).at[..., 3].multiply(20)
    act = None if act_text is None else Spec.parse(act_text)
    stats = LayerStats.empty(K).update(x)
    return weight, quantized_weight(quantize_tensor(weight, Spec.parse(weight_text)), act, stats), x


def dequantized_input(x, qweight):
    rows = quantize_rows(
        x.reshape(-1, K), bits=qweight.act.bits, symmetric=qweight.act.symmetric, scale=qweight.act_scale,
        zero=qweight.act_zero,
    )  # fmt: skip
    zero = 0 if rows.zero is None else np.asarray(rows.zero, np.float64)
    return ((np.asarray(rows.codes, np.float64) - zero) * np.asarray(rows.scale, np.float64)).reshape(x.shape)


@pytest.mark.parametrize("act", INPUTS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_integer_product_equals_float_product_of_the_dequantized_operands(weight, act):
    _, qweight, x = layer(weight, act)
    bias = jnp.linspace(-1, 1, N)
    y = jax.jit(lambda w, x, b: linear(w, x, b))(qweight, x, bias)
    a, b = dequantized_input(x, qweight), np.asarray(qweight.weight.dequantize(), np.float64)
    exact = a @ b.T + np.asarray(bias)
    size = np.abs(a) @ np.abs(b).T + 1
    assert np.all(
        np.abs(y - exact) <= 8 * 2.0**-24 * size
    )  # conversion, scales, groups, bias: under 8 roundings


@pytest.mark.parametrize("weight", ["int8/channel/asym", "int4/group64/asym", "int8/group64/asym"])
def test_weight_only_multiplies_the_dequantized_weight(weight):
    _, qweight, x = layer(weight, None)
    np.testing.assert_array_equal(linear(qweight, x), linear(qweight.weight.dequantize(), x))


def test_eight_bits_are_close_to_the_unquantized_layer():
    weight, qweight, x = layer("int8/channel/asym", "int8/token")
    error = linear(qweight, x) - linear(weight, x)
    # rounding errors are uniform: variance scale^2 / 12 of each operand, independent, summed over k; 6 sigma
    x_scale = np.abs(x).max(-1, keepdims=True) / 127
    w_scale = np.asarray(qweight.weight.scale).T
    sigma = np.sqrt(
        (x_scale**2 * np.square(weight).sum(1) + w_scale**2 * np.square(x).sum(-1)[..., None]) / 12
    )
    assert np.all(np.abs(error) < 6 * sigma)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_result_has_the_dtype_and_the_leading_axes_of_the_input(dtype):
    _, qweight, x = layer("int4/group32", "int8/token")
    y = linear(qweight, x.astype(dtype))
    assert y.dtype == dtype
    assert y.shape == (2, 7, N)


@pytest.mark.parametrize("act", ["int8/token", "int8/tensor/static"])
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(act):
    """A token position once shared its scale over the batch (D1)."""
    _, qweight, x = layer("int8/channel", act)
    disturbed = x.at[1].multiply(100)
    np.testing.assert_array_equal(linear(qweight, x)[0], linear(qweight, disturbed)[0])


def test_a_zero_token_gives_the_bias():
    """It once gave NaN (D11)."""
    _, qweight, x = layer("int8/channel/asym", "int8/token")
    y = linear(qweight, x.at[0, 2].set(0), jnp.arange(N, dtype=jnp.float32))
    np.testing.assert_array_equal(y[0, 2], np.arange(N))
    assert np.all(np.isfinite(y))


def test_a_token_that_is_not_finite_spoils_itself_alone():
    _, qweight, x = layer("int8/channel", "int8/token")
    y = linear(qweight, x.at[0, 2, 5].set(jnp.inf))
    assert np.all(np.isnan(y[0, 2]))
    np.testing.assert_array_equal(y[1], linear(qweight, x)[1])


def test_a_static_scale_is_one_step_and_not_the_largest_input():
    """It was once read as the largest input (D12)."""
    _, qweight, x = layer("int8/channel", "int8/tensor/static")
    np.testing.assert_allclose(qweight.act_scale, [[np.abs(x).max() / 127]], rtol=1e-6)


@pytest.mark.parametrize("act", ["int8/tensor/static", "int8/tensor/asym/static"])
def test_inputs_that_calibration_saw_are_off_by_half_a_static_step_at_most(act):
    """2**-14 of a step covers what 255 steps lose in the roundings of the scale."""
    _, qweight, x = layer("int8/channel", act)
    step = float(qweight.act_scale[0, 0])
    spread = x.max() - x.min() if "asym" in act else 2 * np.abs(x).max()
    np.testing.assert_allclose(step, spread / (255 if "asym" in act else 254), rtol=1e-6)
    assert np.all(np.abs(dequantized_input(x, qweight) - x) <= (0.5 + 2.0**-14) * step)


def test_static_inputs_need_statistics():
    with pytest.raises(ValueError, match="takes its scale from calibration"):
        quantized_weight(
            quantize_tensor(jnp.ones((2, 4)), Spec.parse("int8/channel")), Spec.parse("int8/tensor/static")
        )


@pytest.mark.parametrize(
    ("weight", "act", "stored"),
    [
        ("int8/channel/asym", "int8/token", False),
        ("int8/channel", "int8/token/asym", True),
        ("int8/channel", None, False),
    ],
)
def test_code_sums_are_stored_only_for_asymmetric_inputs(weight, act, stored):
    _, qweight, _ = layer(weight, act)
    assert (qweight.weight_sum is not None) == stored
