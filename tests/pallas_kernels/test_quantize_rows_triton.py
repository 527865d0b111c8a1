"""quantize_rows through jax-triton, without a GPU: the kernel interpreted, and assembled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.devices import tracing_for
from pallas_kernels.dispatch import UnsupportedError
from pallas_kernels.quantize_rows import Rows, quantize_rows
from pallas_kernels.quantize_rows.cases import CASES, FUSED
from pallas_kernels.quantize_rows.triton import Tiles, candidates, launch, misfit
from tests.pallas_kernels.same_rows import assert_same, assert_within_the_contract
from tests.pallas_kernels.test_quantize_rows_mosaic_gpu import FORMATS, FP8, PLAIN, STEPS, X
from tests.pallas_kernels.triton_interpreter import in_interpreter, needs_triton
from tests.pallas_kernels.triton_machine_code import A100, GPUS, RTX4090, kernels, lowered, needs_jax_triton

FOUR = Tiles(4, 4)


def interpreted(x, *, tiles=FOUR, **options):
    return Rows(*launch(x, **(PLAIN | options), tiles=tiles, run=in_interpreter))


def reference(x, **options):
    return quantize_rows(x, **options, implementation="reference")


@needs_triton
@pytest.mark.parametrize("codes", FORMATS)
def test_plain_codes_and_scales_are_those_of_the_reference_bit_for_bit(codes):
    assert_same(interpreted(X, **FORMATS[codes]), reference(X, **FORMATS[codes]))


@needs_triton
@pytest.mark.parametrize("case", CASES)
def test_rows_of_any_number_and_length_are_those_of_the_reference(case):
    m, k = CASES[case]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((m, k)) * 3, jnp.float32)
    options = FORMATS["int8 asym"]
    assert_same(interpreted(x, tiles=Tiles(8, 4), **options), reference(x, **options))


@needs_triton
@pytest.mark.parametrize("codes", ["int8", "int8 asym", "fp8", "int8 static asym"])
def test_rows_without_codes_and_rows_at_the_edge_are_those_of_the_reference(codes):
    rows = np.asarray(X[:8], np.float32)
    rows[0], rows[1], rows[2] = 0, 3, -3
    rows[3, 17], rows[4, 200], rows[5, 0] = np.nan, np.inf, -np.inf
    rows[6], rows[7] = 1e-42, 1e38 * (1 - 2 * (np.arange(256) % 2))
    assert_same(
        interpreted(jnp.asarray(rows), **FORMATS[codes]), reference(jnp.asarray(rows), **FORMATS[codes])
    )


@needs_triton
def test_halves_round_to_even_and_not_away():
    x = jnp.asarray([[0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127.0]])
    np.testing.assert_array_equal(interpreted(x, tiles=Tiles(1, 1)).codes, [[0, 2, 2, 0, -2, -2, 126, 127]])


@needs_triton
@pytest.mark.parametrize("steps", STEPS)
def test_fused_rows_are_those_of_the_reference(steps):
    assert_within_the_contract(interpreted(X, **STEPS[steps]), reference(X, **STEPS[steps]))


@needs_triton
@pytest.mark.parametrize("rows", [8, 16])
def test_a_modulation_may_end_inside_of_a_block_of_rows(rows):
    """Two samples of eight rows."""
    steps = STEPS["modulation, balance, rotation"]
    assert_within_the_contract(interpreted(X, tiles=Tiles(rows, 4), **steps), reference(X, **steps))


LAYERS = (
    "dit-xl one modulated row a sample",
    "dit-xl mlp/fc2 input, before its gelu, balanced",
    "dit-xl modulated tokens, balanced and rotated",
    "pixart tokens rotated in regular blocks",
    "all of it, k of no tile",
)


@needs_triton
@pytest.mark.parametrize("case", LAYERS)
def test_the_rows_of_layers_are_those_of_the_reference(case):
    m, k, groups, activation, balanced, block, regular = FUSED[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((m, k)), jnp.bfloat16)
    options = dict(activation=activation, block=block, regular=regular, with_sum=True)
    if groups is not None:
        options["modulation"] = tuple(jnp.asarray(rng.standard_normal((groups, k)) * 0.3) for _ in range(2))
    if balanced:
        options["balance"] = jnp.asarray(np.exp(rng.standard_normal(k)))
    assert_within_the_contract(interpreted(x, tiles=Tiles(8, 4), **options), reference(x, **options))


shape = jax.ShapeDtypeStruct
ASSEMBLED = {
    "1152 modulated, rotated": (1152, dict(block=128), ("modulation", "signs")),
    "1152 regular blocks": (1152, dict(block=64, regular=True), ("signs",)),
    "1152 asymmetric": (1152, dict(symmetric=False, with_sum=True), ()),
    "4608 gelu, balanced, rotated": (4608, dict(activation="gelu", block=512), ("balance",)),
    "12288 gelu": (12288, dict(activation="gelu"), ()),
}


def abstract(k, names):
    shapes = {
        "modulation": (shape((2, k), jnp.bfloat16),) * 2,
        "balance": shape((k,), jnp.float32),
        "signs": shape((k // 8,), jnp.uint8),
    }
    return {name: shapes[name] for name in names}


@needs_jax_triton
@GPUS
@pytest.mark.parametrize("case", ASSEMBLED)
def test_rows_are_loaded_16_bytes_at_a_time_and_spill_nothing(case, gpu):
    k, options, arrays = ASSEMBLED[case]
    (kernel,) = kernels(
        lambda x, given: quantize_rows(x, **options, **given, implementation="triton"),
        shape((8192, k), jnp.bfloat16), abstract(k, arrays), gpu=gpu,
    )  # fmt: skip
    assert kernel.spills == 0
    assert any(re.fullmatch(r"LDG\.E.*\.128", opcode) for opcode in kernel.opcodes)


@needs_jax_triton
def test_codes_of_float8_are_made_by_ada_and_refused_on_ampere():
    x = shape((8192, 1152), jnp.bfloat16)
    (kernel,) = kernels(lambda x: quantize_rows(x, dtype=FP8, implementation="triton"), x, gpu=RTX4090)
    assert kernel.spills == 0
    assert kernel.ptx.count("cvt.rn.satfinite.e4m3x2.f32") > 0
    with (
        tracing_for(A100),
        pytest.raises(UnsupportedError, match=r"8\.9 on, and NVIDIA A100-SXM4-80GB has 8\.0"),
    ):
        quantize_rows(X, dtype=FP8, implementation="triton")


@needs_jax_triton
def test_no_product_shares_its_rounding_with_a_sum():
    """Codes are round(x * inverse): with one rounding for x * inverse + ROUNDS some would be others."""
    x = shape((8192, 1152), jnp.float32)
    (kernel,) = kernels(lambda x: quantize_rows(x, implementation="triton"), x, gpu=A100)
    assert "add.rn.f32" in kernel.ptx or "add.f32" in kernel.ptx
    assert "fma" not in kernel.ptx


@needs_jax_triton
def test_a_program_for_ampere_is_one_kernel():
    text = str(
        lowered(
            lambda x: quantize_rows(x, activation="gelu", block=64), shape((64, 1152), jnp.bfloat16), gpu=A100
        )
    )
    assert text.count("@triton_kernel_call") == 1
    assert "dot_general" not in text


@pytest.mark.parametrize("k", [31, 192, 1152, 4608, 12288, 16384])
def test_threads_hold_few_numbers_of_rows_of_any_length(k):
    given = {name: None for name in ("modulation", "activation", "balance", "signs", "block")}
    for tiles in candidates(shape((4096, k), jnp.bfloat16), **given).candidates:
        assert tiles.held(k) <= 64


@pytest.mark.parametrize(
    ("m", "k", "options", "reason"),
    [
        (4, 96, dict(block=12), "a power of 2, not blocks of 12"),
        (4, 96, dict(block=32, regular=True), "a power of 4, not blocks of 32"),
        (4, 16392, {}, "up to 16384 channels"),
        (0, 64, {}, "no empty rows, got [0, 64]"),
    ],
)
def test_what_the_kernel_cannot_do_has_a_reason(m, k, options, reason):
    rows = shape((m, k), jnp.bfloat16)
    assert reason in (misfit(rows, **({"block": None, "regular": False} | options)) or "")
    assert misfit(shape((4, 64), jnp.bfloat16), block=16, regular=True) is None


def test_a_cpu_is_no_place_for_the_kernel():
    if jax.default_backend() != "cpu":
        pytest.skip(f"the default device is a {jax.default_backend()}")
    assert dispatch.explain("quantize_rows", X, **PLAIN)["xla"] is None
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU"):
        quantize_rows(X, implementation="triton")
