"""What is timed against floats computes what the floats do, up to the error of quantization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.layers import LAYERS, Layer
from viditq_jax.bench.cases import OPS, Product, Rotation, Rows, cases, run
from viditq_jax.bench.ops import attempt, bench_case
from viditq_jax.bench.timing import Work

RATES = {"bfloat16": 2e9, "float32": 1e9, "int8": 4e9}
CEILINGS = {**{f"{name}_flop_per_s": rate for name, rate in RATES.items()}, "copy_bytes_per_s": 1e9}
LAYER = Layer(16, 128, 64)


def relative(found, expected):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("epilogue", ["none", "gelu", "gate", "residual"])
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (4, 0.2)])
def test_a_product_is_that_of_the_floats(bits, bound, epilogue):
    """Normal numbers reach about 2.8 sigma in 128. A step of int8 is 0.022 sigma, so its rms error is 0.022 /
    sqrt(12); one of asymmetric int4 weights is 0.37 sigma, 0.11 sigma. An epilogue makes relative errors less
    than 2 times as large.
    """
    case = Product("a layer", LAYER._replace(epilogue=epilogue), bits)
    drawn = case.draw(jax.random.key(0))
    found = run(case, "xla")(case.encode(drawn))
    assert found.dtype == jnp.bfloat16
    assert 0 < relative(found, case.plain(drawn)) < bound


@pytest.mark.parametrize("form", ["plain", "modulated", "gelu"])
def test_codes_are_those_of_the_float_rows(form):
    """Half a step each, and what a norm and a modulation make of the rounding of bfloat16 inputs, 2**-8."""
    case = Rows("rows", 16, 128, form)
    drawn = case.draw(jax.random.key(0))
    rows = run(case, "xla")(case.encode(drawn))
    expected = case.plain(drawn) * (-1 if form == "plain" else 1)
    found = rows.codes.astype(jnp.float32) * rows.scale
    assert np.all(np.abs(found - expected) <= 0.5 * rows.scale + 2.0**-6 * (1 + np.abs(expected)))
    np.testing.assert_array_equal(rows.sum, rows.codes.astype(jnp.int32).sum(1, keepdims=True))


def test_rotated_rows_are_modulated_rows_balanced_and_rotated():
    """Rotation keeps lengths, so those of the codes are those of the balanced rows."""
    case = Rows("rows", 16, 128, "rotated")
    drawn = case.draw(jax.random.key(0))
    encoded = case.encode(drawn)
    rows = run(case, "xla")(encoded)
    lengths = np.linalg.norm(rows.codes.astype(jnp.float32) * rows.scale, axis=1)
    balanced = case.plain(drawn) / encoded["balance"]
    np.testing.assert_allclose(lengths, np.linalg.norm(balanced, axis=1), rtol=0.02)


@pytest.mark.parametrize("block", [4, 64])
def test_a_rotation_is_the_dense_product(block):
    case = Rotation("rows", 16, 64, block)
    drawn = case.draw(jax.random.key(0))
    encoded = case.encode(drawn)
    found = run(case, "xla")(encoded)
    expected = case.plain({**drawn, "x": encoded["x"].astype(jnp.float32)})
    np.testing.assert_allclose(found, expected, atol=block * 2.0**-22)


def test_every_op_is_timed_in_the_order_asked_for_and_no_shape_twice():
    found = cases()
    assert list(dict.fromkeys(case.op for case in found)) == list(OPS)
    assert [case.op for case in cases(quick=True)] == sorted(
        (case.op for case in cases(quick=True)), key=OPS.index
    )
    shapes = [(case.op, *case.facts.items()) for case in found]
    assert len(set(shapes)) == len(shapes)
    assert {case.op for case in cases(("hadamard",))} == {"hadamard"}
    assert len(cases(quick=True)) < len(found)


def test_batches_are_cut_where_they_would_take_long():
    assert max(case.facts["m"] for case in cases(most_rows=128)) == 128
    assert {layer.rows for layer in LAYERS.values() if layer.rows < 128} <= {
        case.facts["m"] for case in cases(most_rows=128)
    }


def test_a_row_says_what_was_compared_with_what():
    case = Product("a layer", LAYER)
    rows, left_out = bench_case(case, CEILINGS, samples=2, seconds=1.0)
    named = {row["implementation"]: row for row in rows}
    assert {"float32", "bfloat16", "xla"} <= named.keys() | left_out.keys()
    xla = named["xla"]
    assert (xla["case"], xla["op"], xla["m"], xla["k"], xla["n"]) == ("a layer", "scaled_matmul", 16, 128, 64)
    assert (xla["float"], xla["baseline_median_s"]) == ("float32", named["float32"]["median_s"])
    times = {name: row["median_s"] for name, row in named.items()}
    assert xla["ratio_vs_float"] == pytest.approx(times["float32"] / times["xla"], rel=1e-3)
    assert xla["ratio_vs_bfloat16"] == pytest.approx(times["bfloat16"] / times["xla"], rel=1e-3)
    assert named["float32"]["ratio_vs_float"] == 1
    assert xla["relative_l2_vs_xla"] == 0


def test_bytes_are_each_operand_and_each_result_once_and_the_ceiling_follows():
    rows, _ = bench_case(Product("a layer", LAYER), CEILINGS, samples=1, seconds=1.0)
    xla = next(row for row in rows if row["implementation"] == "xla")
    m, k, n = 16, 128, 64
    codes, scales, zeros, sums, bias, out = m * k + n * k, 4 * (m + n), n, 4 * m, 2 * n, 2 * m * n
    assert xla["bytes"] == codes + scales + zeros + sums + bias + out
    assert xla["flop"] == 2 * m * k * n
    ceiling = max(xla["flop"] / CEILINGS["int8_flop_per_s"], xla["bytes"] / CEILINGS["copy_bytes_per_s"])
    assert xla["fraction_of_ceiling"] == pytest.approx(ceiling / xla["median_s"], rel=1e-3)


def test_an_implementation_that_fails_is_a_reason_and_no_end():
    def broken(operands):
        raise RuntimeError("out of\n registers")

    assert attempt(broken, [{"x": jnp.ones(2)}]) == "failed: RuntimeError: out of registers"
    case = Product("a layer", LAYER)
    outcome = attempt(run(case, "xla"), [case.encode(case.draw(jax.random.key(0)))])
    assert isinstance(outcome[0], Work)
    assert "choose one of" in attempt(run(case, "abacus"), [case.encode(case.draw(jax.random.key(0)))])
