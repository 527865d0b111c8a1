"""quantize_rows on TPUs, without one: the kernel interpreted, when it is taken, and its lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat, devices, dispatch, lanes
from pallas_kernels.quantize_rows import Rows, quantize_rows, tpu
from tests.pallas_kernels.interpretation import lowered_for_tpu
from tests.pallas_kernels.same_rows import assert_same, assert_within_the_contract

FP8 = jnp.float8_e4m3fn
PLAIN = dict(
    modulation=None, eps=1e-6, activation=None, balance=None, signs=None, block=None, regular=False,
    bits=8, symmetric=True, dtype=jnp.int8, scale=None, zero=None, with_sum=False,
)  # fmt: skip
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((24, 256)) * 2 + 0.3, jnp.bfloat16)
MODULATION = tuple(jnp.asarray(RNG.standard_normal((2, 256)) * size, jnp.bfloat16) for size in (1, 0.3))
BALANCE = jnp.asarray(np.exp(RNG.standard_normal(256)), jnp.float32)
SIGNS = jnp.asarray(RNG.integers(0, 256, 32), jnp.uint8)
STEPS = {
    "modulation, balance, rotation": dict(modulation=MODULATION, balance=BALANCE, block=32, signs=SIGNS),
    "gelu, balance": dict(activation="gelu", balance=BALANCE),
    "all": dict(modulation=MODULATION, activation="gelu", balance=BALANCE, block=128, signs=SIGNS),
}
FORMATS = {
    "int8": {},
    "int4 asym": dict(bits=4, symmetric=False, with_sum=True),
    "fp8": dict(dtype=FP8),
    "int8 static asym": dict(
        scale=jnp.asarray([[0.03]]), zero=jnp.asarray([[-9]], jnp.int8), symmetric=False, with_sum=True
    ),
    "int8 static rows": dict(scale=jnp.linspace(0.01, 0.1, 24)[:, None]),
}
SIXTEEN = lanes.Tiles(16)  # so the last block of 24 rows is half over the end


def interpreted(x, *, tiles=SIXTEEN, races=False, **options):
    how = compat.interpreted_tpu(detect_races=races)
    given = {name: value for name, value in options.items() if name in ARRAYS}
    static = {name: value for name, value in (PLAIN | options).items() if name not in given}
    kernel = functools.partial(tpu.kernel, **static, tiles=tiles, interpret=how)
    return Rows(*jax.jit(kernel)(x, **given))


ARRAYS = ("modulation", "balance", "signs", "scale", "zero")


def reference(x, **options):
    given = {name: value for name, value in options.items() if name in ARRAYS}
    static = {name: value for name, value in options.items() if name not in given}
    return jax.jit(functools.partial(quantize_rows, **static, implementation="reference"))(x, **given)


@pytest.mark.parametrize("codes", FORMATS)
def test_plain_codes_and_scales_are_those_of_the_reference_bit_for_bit(codes):
    assert_same(interpreted(X, **FORMATS[codes]), reference(X, **FORMATS[codes]))


@pytest.mark.parametrize(("block", "dtype", "most"), [(32, jnp.bfloat16, 100), (256, jnp.float32, 30000)])
def test_codes_of_integers_that_were_rotated_are_those_of_the_reference_bit_for_bit(block, dtype, most):
    """The sums of the rotation are exact in any order, of one product or of three; then one rounding."""
    x = jnp.asarray(RNG.integers(-most, most, (8, 256)), dtype)
    options = dict(block=block, signs=SIGNS, symmetric=False, with_sum=True)
    assert_same(interpreted(x, tiles=lanes.Tiles(8), **options), reference(x, **options))


def test_rows_without_codes_and_rows_at_the_edge_are_those_of_the_reference():
    rows = np.asarray(X[:8], np.float32)
    rows[0], rows[1], rows[2] = 0, 3, -3
    rows[3, 17], rows[4, 200], rows[5, 0] = np.nan, np.inf, -np.inf
    rows[6], rows[7] = 1e-42, 1e38 * (1 - 2 * (np.arange(256) % 2))
    x, asymmetric = jnp.asarray(rows), dict(symmetric=False, with_sum=True)
    assert_same(interpreted(x, tiles=lanes.Tiles(8), **asymmetric), reference(x, **asymmetric))


def test_a_row_that_is_not_finite_has_no_codes_after_its_rotation_and_spoils_no_other():
    x = X[:8].at[3, 17].set(jnp.nan).at[5, 0].set(jnp.inf)
    made = interpreted(x, tiles=lanes.Tiles(8), block=32)
    expected = reference(x.at[np.array([3, 5])].set(0), block=32)
    spoilt = np.isin(np.arange(8), (3, 5))[:, None]
    np.testing.assert_array_equal(np.isnan(made.scale), spoilt)
    np.testing.assert_array_equal(made.codes, np.where(spoilt, 0, expected.codes))


@pytest.mark.parametrize("steps", STEPS)
def test_fused_rows_are_those_of_the_reference(steps):
    """Groups of 12 rows are cut into blocks of 8."""
    made = interpreted(X, tiles=lanes.Tiles(8), **STEPS[steps])
    assert_within_the_contract(made, reference(X, **STEPS[steps]))


def test_blocks_of_rows_do_not_race():
    interpreted(X, races=True, block=32, signs=SIGNS)
    assert not compat.races_found_tpu()


SHAPES = {
    "modulation": (jax.ShapeDtypeStruct((2, 1152), jnp.bfloat16),) * 2,
    "balance": jax.ShapeDtypeStruct((1152,), jnp.float32),
    "signs": jax.ShapeDtypeStruct((144,), jnp.uint8),
    "scale": jax.ShapeDtypeStruct((1, 1), jnp.float32),
}
EXPORTED = {
    "tokens modulated, rotated": (64, dict(block=32, with_sum=True), ("modulation", "balance", "signs")),
    "odd rows, regular blocks": (7, dict(block=64, regular=True, symmetric=False), ("signs",)),
    "gelu, static": (200, dict(block=128, activation="gelu"), ("scale",)),
    "float8": (64, dict(block=16, dtype=FP8), ()),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_the_kernel_that_a_tpu_takes_lowers_for_it(case):
    """All of Mosaic TPU that runs before the TPU's own compiler."""
    m, static, names = EXPORTED[case]
    x, given = jax.ShapeDtypeStruct((m, 1152), jnp.bfloat16), {name: SHAPES[name] for name in names}
    module = lowered_for_tpu(lambda x, given: quantize_rows(x, **given, **static), x, given)
    assert module.count("stablehlo.custom_call @tpu_custom_call") == 1


def reason(x=X, **options):
    with devices.tracing_for(devices.Tpu("TPU v5e")):
        return dispatch.explain("quantize_rows", x, **(PLAIN | options))["tpu"]


def test_rows_that_are_not_rotated_are_left_to_xla():
    assert reason() == "XLA keeps nothing in memory between the steps of rows that are not rotated"
    assert reason(block=32) is None


def test_what_does_not_fit_lanes_or_vector_memory_is_refused_with_the_bound():
    def of(m, k, dtype=jnp.float32):
        return jnp.zeros((m, k), dtype)

    assert "multiples of 128" in reason(of(8, 192), block=32)
    assert "(12, 2, 2, 2, 12)" in reason(of(8, 1152), block=1152)
    assert reason(of(8, 1536), block=1536) is None
    assert reason(of(8, 15360), block=512) is None
    assert "do not fit vector memory, where 19114 do" in reason(of(8, 20480), block=512)
    assert "float16 was given" in reason(of(8, 1152, jnp.float16), block=32)
    assert reason(of(0, 1152), block=32) == "no rows were given"


def test_the_longest_rows_that_are_taken_have_blocks_and_longer_ones_have_none():
    assert lanes.fitting(4096, 19114) == [lanes.Tiles(32)]
    assert lanes.fitting(4096, 19115) == []
    assert lanes.fitting(4096, 1152) == [lanes.Tiles(rows) for rows in (128, 64, 32, 256)]
    assert lanes.fitting(7, 1152) == [lanes.Tiles(7)]


def test_a_cpu_is_no_place_for_the_kernel():
    assert dispatch.explain("quantize_rows", X, **PLAIN)["tpu"] == "the default device is no TPU"
