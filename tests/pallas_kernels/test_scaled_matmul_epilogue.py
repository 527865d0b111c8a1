"""What follows the sums of scaled_matmul and packed_matmul: activation, gate, residual, and one rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.packing import pack
from pallas_kernels.scaled_matmul import scaled_matmul
from tests.pallas_kernels.unsupported import skip_unsupported

STATIC = ("activation", "out_dtype", "implementation")
OPS = {
    name: skip_unsupported(jax.jit(op, static_argnames=STATIC))
    for name, op in (("scaled_matmul", scaled_matmul), ("packed_matmul", packed_matmul))
}
M, K, N = 96, 128, 64


@pytest.fixture(params=[(op, name) for op in OPS for name in [*dispatch.implementations(op), "reference"]])
def product(request):
    """The op on codes of 4 bits, which both ops take: codes, scales and options to rows."""
    op, implementation = request.param

    def call(x, codes, *scales, **options):
        w = pack(jnp.asarray(codes)) if op == "packed_matmul" else codes
        return OPS[op](x, w, *scales, **options, implementation=implementation)

    return call


def inputs(b=3):
    """Codes and scales whose products are of about 4, and a bias, a residual and a gate of about 1."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-127, 128, (M, K)).astype(np.int8), rng.integers(-8, 8, (N, K)).astype(np.int8)
    x_scale, w_scale = (rng.uniform(0.5, 2, (rows, 1)).astype(np.float32) for rows in (M, N))
    floats = {"bias": (N,), "residual": (M, N), "gate": (b, N)}
    floats = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in floats.items()}
    return (x, w, x_scale, w_scale / 1024), floats


def by_hand(x, w, x_scale, w_scale, *, activation=None, bias=None, residual=None, gate=None):
    """The contract in float64, and how far a float32 result may be off.

    Before the activation: conversion, two scales and the bias each round what they meet by 2**-24 of it. GELU
    has a slope of at most 1.13 and its own 2**-21. Gate and residual round once each.
    """
    y = (x.astype(np.float64) @ w.T.astype(np.float64)) * x_scale * w_scale.T
    bias = 0 if bias is None else bias.astype(np.float64)
    error = 4 * 2.0**-24 * (np.abs(y) + np.abs(bias))
    y = y + bias
    if activation == "gelu":
        error = 1.13 * error + 2.0**-21 * np.abs(y)
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    if gate is not None:
        rows = np.repeat(gate.astype(np.float64), len(y) // len(gate), 0)
        error, y = np.abs(rows) * error + 2.0**-24 * np.abs(rows * y), rows * y
    if residual is not None:
        error, y = error + 2.0**-24 * (np.abs(y) + np.abs(residual)), y + residual
    return y, error


@pytest.mark.parametrize("out_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("activation", "names", "b"),
    [
        (None, ["bias"], 1),
        ("gelu", ["bias"], 1),
        (None, ["residual"], 1),
        (None, ["bias", "residual", "gate"], 1),
        ("gelu", ["bias", "residual", "gate"], 3),
    ],
)
def test_each_epilogue_is_what_its_steps_give_by_hand(product, activation, names, b, out_dtype):
    args, floats = inputs(b)
    options = {"activation": activation} | {name: floats[name] for name in names}
    y = product(*args, **options, out_dtype=out_dtype)
    exact, error = by_hand(*args, **options)
    assert y.dtype == out_dtype
    rounding = np.abs(exact) * float(jnp.finfo(out_dtype).eps) / 2 + float(jnp.finfo(out_dtype).tiny)
    assert np.all(np.abs(np.asarray(y, np.float64) - exact) <= 1.001 * error + rounding)


def test_integers_come_out_exact_whatever_follows_them(product):
    """Scales of 1, a gate of powers of two and an integer residual leave every float32 step exact."""
    (x, w, *_), _ = inputs()
    rng = np.random.default_rng(1)
    gate, residual = 2.0 ** rng.integers(-2, 3, (2, N)), rng.integers(-999, 1000, (M, N))
    one = jnp.ones((1, 1))
    y = product(
        x, w, one, one, bias=np.full(N, 8.0, np.float32), residual=residual.astype(np.float32),
        gate=gate.astype(np.float32), out_dtype=jnp.float32,
    )  # fmt: skip
    sums = x.astype(np.int64) @ w.T.astype(np.int64)
    np.testing.assert_array_equal(y, residual + np.repeat(gate, M // 2, 0) * (sums + 8))


def test_each_row_takes_the_gate_of_its_image(product):
    x, w, one = np.ones((M, K), np.int8), np.ones((N, K), np.int8), np.ones((1, 1), np.float32)
    gate = np.arange(6 * N, dtype=np.float32).reshape(6, N)
    y = product(x, w, one / K, one, residual=np.zeros((M, N), np.float32), gate=gate, out_dtype=jnp.float32)
    np.testing.assert_array_equal(y, np.repeat(gate, M // 6, 0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_gate_and_residual_are_used_as_the_float32_numbers_that_they_are(product, dtype):
    args, floats = inputs()
    few = {name: jnp.asarray(floats[name]).astype(dtype) for name in ("residual", "gate")}
    same = {name: value.astype(jnp.float32) for name, value in few.items()}
    np.testing.assert_array_equal(
        product(*args, **few, out_dtype=jnp.float32), product(*args, **same, out_dtype=jnp.float32)
    )


def test_gelu_leaves_large_numbers_and_zeroes_large_negative_ones(product):
    x, w, one = np.ones((M, K), np.int8), np.ones((N, K), np.int8), np.ones((1, 1), np.float32)
    bias = np.repeat([np.float32(1e4), np.float32(-1e4)], N // 2)
    y = product(x, w, one, one, bias=bias, activation="gelu", out_dtype=jnp.float32)
    np.testing.assert_array_equal(y, np.broadcast_to(np.where(bias > 0, bias + K, 0), (M, N)))


@pytest.mark.parametrize("op", OPS)
def test_epilogues_that_make_no_sense_are_refused_with_a_way_out(op):
    (x, w, *scales), floats = inputs(5)
    args = (x, pack(jnp.asarray(w)) if op == "packed_matmul" else w, *scales)
    with pytest.raises(ValueError, match=r"a gate of \(5, 64\) .* without a residual; give the residual"):
        OPS[op](*args, gate=floats["gate"])
    with pytest.raises(ValueError, match=r"a gate of 5 rows does not divide 96 rows; give one row for each"):
        OPS[op](*args, gate=floats["gate"], residual=floats["residual"])
    with pytest.raises(ValueError, match=r"activation 'silu' is unknown; take one of None, 'gelu'"):
        OPS[op](*args, activation="silu")
