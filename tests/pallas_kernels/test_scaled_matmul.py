"""Every implementation of scaled_matmul against its reference and against exact integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.scaled_matmul import scaled_matmul as plain_scaled_matmul
from pallas_kernels.scaled_matmul.cases import CASES

scaled_matmul = jax.jit(plain_scaled_matmul, static_argnames=("out_dtype", "implementation"))
IMPLEMENTATIONS = dispatch.implementations("scaled_matmul")


def operands(m, k, n, *, x_zero=False, w_zero=False, seed=0):
    """Random codes over the whole range; ±127 and -128 are certain to occur."""
    rng = np.random.default_rng(seed)
    x, w = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (n, k)))
    x[0, :] = 127
    w[0, :] = -128
    scales = [rng.uniform(1e-3, 1e-1, (rows, 1)).astype(np.float32) for rows in (m, n)]
    zeros = {
        "x_zero": rng.integers(-128, 128, (m, 1)).astype(np.int8) if x_zero else None,
        "w_zero": rng.integers(-128, 128, (n, 1)).astype(np.int8) if w_zero else None,
    }
    return [jnp.asarray(a) for a in (x, w, *scales)], {
        k: v if v is None else jnp.asarray(v) for k, v in zeros.items()
    }


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    return request.param


@pytest.mark.parametrize(("x_zero", "w_zero"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("case", CASES)
def test_integer_sums_equal_exact_ones(implementation, case, x_zero, w_zero):
    """With scales of 1 and one int32 to float32 conversion, nothing else may be rounded."""
    m, k, n = CASES[case]
    (x, w, _, _), zeros = operands(m, k, n, x_zero=x_zero, w_zero=w_zero)
    one = jnp.ones((1, 1), jnp.float32)
    y = scaled_matmul(x, w, one, one, **zeros, out_dtype=jnp.float32, implementation=implementation)
    x, w = np.asarray(x, np.int64), np.asarray(w, np.int64)
    exact = (x - (np.asarray(zeros["x_zero"], np.int64) if x_zero else 0)) @ (
        w - (np.asarray(zeros["w_zero"], np.int64) if w_zero else 0)
    ).T
    np.testing.assert_array_equal(y, exact.astype(np.float32))  # int -> float32 rounds once on both sides


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_it_equals_the_reference_bit_for_bit(implementation, case, dtype):
    args, zeros = operands(*CASES[case], x_zero=True, w_zero=True)
    y, expected = (
        scaled_matmul(*args, **zeros, out_dtype=dtype, implementation=name)
        for name in (implementation, "reference")
    )
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("case", CASES)
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


def test_given_sums_give_what_computed_sums_give(implementation):
    args, zeros = operands(7, 192, 33, x_zero=True, w_zero=True)
    sums = {
        "x_sum": args[0].sum(1, dtype=jnp.int32, keepdims=True),
        "w_sum": args[1].sum(1, dtype=jnp.int32, keepdims=True),
    }
    with_sums = scaled_matmul(*args, **zeros, **sums, implementation=implementation)
    np.testing.assert_array_equal(with_sums, scaled_matmul(*args, **zeros, implementation=implementation))


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


def test_xla_is_given_a_dot_of_int8():
    """An int32 operand would cost several times the time."""
    args, _ = operands(8, 32, 16)
    text = jax.jit(lambda *a: scaled_matmul(*a, implementation="xla")).lower(*args).as_text()
    assert "tensor<8x32xi8>, tensor<16x32xi8>) -> tensor<8x16xi32>" in text
