"""quantize_rows on GPUs, without one: the kernel interpreted, how its rows lie in registers, its lowering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import compat, dispatch
from pallas_kernels.dispatch import UnsupportedError
from pallas_kernels.quantize_rows import Rows, mosaic_gpu, quantize_rows
from pallas_kernels.rows import Tiles
from tests.pallas_kernels.same_rows import assert_same, assert_within_the_contract

FP8 = jnp.float8_e4m3fn
PLAIN = dict(
    modulation=None, eps=1e-6, activation=None, balance=None, signs=None, block=None, regular=False,
    bits=8, symmetric=True, dtype=jnp.int8, scale=None, zero=None, with_sum=False,
)  # fmt: skip
ONE_WARP, TWO_WARPS, FOUR_WARPS = Tiles(8, 1, 4), Tiles(4, 2, 2), Tiles(1, 4, 1)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((16, 256)) * 2 + 0.3, jnp.bfloat16)
MODULATION = tuple(jnp.asarray(RNG.standard_normal((2, 256)) * size, jnp.bfloat16) for size in (1, 0.3))
BALANCE = jnp.asarray(np.exp(RNG.standard_normal(256)), jnp.float32)
SIGNS = jnp.asarray(RNG.integers(0, 256, 32), jnp.uint8)
STEPS = {
    "modulation, balance, rotation": dict(modulation=MODULATION, balance=BALANCE, block=32, signs=SIGNS),
    "gelu": dict(activation="gelu"),
    "gelu, balance": dict(activation="gelu", balance=BALANCE),
    "balance, rotation": dict(balance=BALANCE, block=128, signs=SIGNS),
    "rotation of whole rows": dict(block=256, regular=True),
    "all": dict(modulation=MODULATION, activation="gelu", balance=BALANCE, block=16, signs=SIGNS),
}
FORMATS = {
    "int8": {},
    "int8 asym": dict(symmetric=False, with_sum=True),
    "int4": dict(bits=4, with_sum=True),
    "int6 asym": dict(bits=6, symmetric=False),
    "fp8": dict(dtype=FP8),
    "int8 static asym": dict(
        scale=jnp.asarray([[0.03]]), zero=jnp.asarray([[-9]], jnp.int8), symmetric=False
    ),
    "int4 static": dict(scale=jnp.asarray([[0.3]]), bits=4),
    "int8 static rows": dict(scale=jnp.linspace(0.01, 0.1, 16)[:, None]),
    "fp8 static": dict(scale=jnp.asarray([[0.003]]), dtype=FP8),
}


def interpreted(x, *, tiles=ONE_WARP, races=False, **options):
    target = compat.interpreted(detect_races=races)
    return Rows(*mosaic_gpu.kernel(x, **(PLAIN | options), tiles=tiles, target=target))


def reference(x, **options):
    return quantize_rows(x, **options, implementation="reference")


@pytest.mark.parametrize("codes", FORMATS)
def test_plain_codes_and_scales_are_those_of_the_reference_bit_for_bit(codes):
    assert_same(interpreted(X, **FORMATS[codes]), reference(X, **FORMATS[codes]))


@pytest.mark.parametrize("tiles", [TWO_WARPS, FOUR_WARPS], ids=["two", "four"])
@pytest.mark.parametrize("codes", ["int8 asym", "int8 static rows"])
def test_rows_that_warps_share_have_the_same_codes(codes, tiles):
    assert_same(interpreted(X, tiles=tiles, **FORMATS[codes]), reference(X, **FORMATS[codes]))


@pytest.mark.parametrize("codes", ["int8", "int8 asym", "fp8", "int8 static asym"])
def test_rows_without_codes_and_rows_at_the_edge_are_those_of_the_reference(codes):
    rows = np.asarray(X[:8], np.float32)
    rows[0], rows[1], rows[2] = 0, 3, -3
    rows[3, 17], rows[4, 200], rows[5, 0] = np.nan, np.inf, -np.inf
    rows[6], rows[7] = 1e-42, 1e38 * (1 - 2 * (np.arange(256) % 2))
    assert_same(
        interpreted(jnp.asarray(rows), **FORMATS[codes]), reference(jnp.asarray(rows), **FORMATS[codes])
    )


@pytest.mark.parametrize("steps", STEPS)
def test_fused_rows_are_those_of_the_reference(steps):
    assert_within_the_contract(interpreted(X, **STEPS[steps]), reference(X, **STEPS[steps]))


@pytest.mark.parametrize("tiles", [TWO_WARPS, FOUR_WARPS], ids=["two", "four"])
def test_fused_rows_that_warps_share_are_those_of_the_reference(tiles):
    """Blocks of 32 stay in a warp; the other warps have those of 256, so XLA transforms them first."""
    for block in (32, 256):
        steps = dict(modulation=MODULATION, activation="gelu", balance=BALANCE, block=block, signs=SIGNS)
        assert_within_the_contract(interpreted(X, tiles=tiles, **steps), reference(X, **steps))


def test_a_rotation_that_butterflies_cannot_do_comes_before_the_kernel():
    x = X[:, :192]
    for options in (dict(block=12, activation="gelu"), dict(block=64, balance=BALANCE[:192])):
        rows = interpreted(x, tiles=Tiles(8, 1, 2), **options)
        assert_within_the_contract(rows, reference(x, **options))


def test_blocks_of_rows_do_not_race():
    interpreted(X, races=True, modulation=MODULATION, balance=BALANCE, symmetric=False, with_sum=True)
    assert not compat.races_found()


EXPORTED = {
    "1152 modulated, rotated": (64, 1152, dict(block=32), ("modulation", "signs")),
    "1152 regular blocks": (64, 1152, dict(block=64, regular=True), ("signs",)),
    "1152 odd rows": (7, 1152, dict(symmetric=False, with_sum=True), ()),
    "1536 modulated, balanced": (64, 1536, {}, ("modulation", "balance")),
    "3072 float8": (64, 3072, dict(dtype=FP8), ("modulation",)),
    "4608 gelu, balanced": (64, 4608, dict(activation="gelu"), ("balance",)),
    "4608 gelu, static": (64, 4608, dict(activation="gelu"), ("scale",)),
    "12288 gelu": (64, 12288, dict(activation="gelu"), ()),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_the_kernel_lowers_for_cuda(case):
    """All of Mosaic GPU that runs before the GPU's own compiler: register layouts, their operations, MLIR."""
    m, k, options, arrays = EXPORTED[case]
    array = jax.ShapeDtypeStruct
    shapes = {
        "modulation": (array((2, k), jnp.bfloat16),) * 2,
        "balance": array((k,), jnp.float32),
        "signs": array((k // 8,), jnp.uint8),
        "scale": array((1, 1), jnp.float32),
    }

    def rows(x, given):
        return mosaic_gpu.run(x, **(PLAIN | options | given))

    given = {name: shapes[name] for name in arrays}
    exported = jax.export.export(jax.jit(rows), platforms=["cuda"])(array((m, k), jnp.bfloat16), given)
    assert exported.mlir_module().count("stablehlo.custom_call @mosaic_gpu") == 1


def test_a_cpu_is_no_place_for_the_kernel():
    reasons = dispatch.explain("quantize_rows", X, **PLAIN)
    assert reasons["mosaic_gpu"] == "it needs an NVIDIA GPU, and the default device is none"
    assert reasons["xla"] is None
    with pytest.raises(UnsupportedError, match="it needs an NVIDIA GPU, and the default device is none"):
        quantize_rows(X, implementation="mosaic_gpu")
