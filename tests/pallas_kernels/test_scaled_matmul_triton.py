"""scaled_matmul through jax-triton as far as a machine without a GPU can tell: interpreted, and assembled."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, triton_kernels, tuning
from pallas_kernels.devices import Gpu, tracing_for
from pallas_kernels.scaled_matmul import reference, scaled_matmul
from pallas_kernels.scaled_matmul._triton import CANDIDATES, Tiles, ranked_tiles
from pallas_kernels.scaled_matmul.cases import CASES
from pallas_kernels.scaled_matmul.triton import launch, misfit
from tests.pallas_kernels.test_scaled_matmul import operands
from tests.pallas_kernels.triton_interpreter import in_interpreter, needs_triton
from tests.pallas_kernels.triton_machine_code import A100, GPUS, kernels, lowered, needs_jax_triton

NOTHING = dict.fromkeys(("bias", "activation", "residual", "gate"))
SMALL = Tiles(32, 64, 64, 4, 2)
ULP = {jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-11, jnp.float32: 2.0**-24}


def interpreted(x, w, x_scale, w_scale, *, out_dtype=jnp.float32, tiles=SMALL, **options):
    options = NOTHING | options
    return launch(x, w, x_scale, w_scale, out_dtype=out_dtype, tiles=tiles, run=in_interpreter, **options)


def exact(x, w, w_scale, x_zero=None, w_zero=None):
    """In the order of the contract: sums of groups as float32, added up."""
    groups = w_scale.shape[1]
    x, w = np.asarray(x, np.int64), np.asarray(w, np.int64).reshape(w.shape[0], groups, -1)
    x = (x if x_zero is None else x - np.asarray(x_zero, np.int64)).reshape(x.shape[0], groups, -1)
    w = w if w_zero is None else w - np.asarray(w_zero, np.int64)[..., None]
    y = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for g in range(groups):
        y += (x[:, g] @ w[:, g].T).astype(np.float32) * np.asarray(w_scale)[0, g]
    return y


FITTING = [name for name, (_, k, _, groups) in CASES.items() if k // groups % 16 == 0]


@needs_triton
@pytest.mark.parametrize(
    ("case", "zeros"),
    [
        *((case, ("x_zero", "w_zero")) for case in FITTING),
        *((FITTING[0], (zero,)) for zero in ("x_zero", "w_zero")),
    ],
)
def test_integer_sums_are_exact(case, zeros):
    """Scales of 1 and 2 leave the conversion of each sum to float32, and the sums of groups, to round."""
    m, k, n, groups = CASES[case]
    (x, w, _, _), given = operands(m, k, n, groups, **dict.fromkeys(zeros, True))
    w_scale = jnp.where(jnp.arange(groups) % 2, 2, 1).astype(jnp.float32)[None]
    (tiles, *_) = ranked_tiles(m, n, k, k // groups, packed=False, few=False, capability=(8, 9), cores=128)
    wide = tiles._replace(rows=64, columns=256)  # the interpreter takes as long for a block of any size
    y = interpreted(x, w, jnp.ones((1, 1)), w_scale, **given, tiles=wide)
    np.testing.assert_array_equal(y, exact(x, w, w_scale, **given))


@needs_triton
@pytest.mark.parametrize("tiles", [(16, 64, 32, 4, 2), (64, 32, 128, 4, 2), (128, 256, 64, 8, 2)], ids=str)
def test_tiles_that_neither_rows_columns_nor_steps_fill_change_nothing(tiles):
    """Seven tiles of rows in bands of other numbers; a last step of half its depth."""
    (x, w, x_scale, w_scale), zeros = operands(100, 80, 72, x_zero=True, w_zero=True)
    y = interpreted(x, w, x_scale, w_scale, **zeros, tiles=Tiles(*tiles))
    expected = reference.run(x, w, x_scale, w_scale, **zeros, **NOTHING, out_dtype=jnp.float32)
    np.testing.assert_array_equal(y, expected)


@needs_triton
def test_bands_of_tiles_cover_every_row_once():
    """Eleven tiles of rows: a band of eight, and one of three."""
    (x, w, *_), _ = operands(11 * 16, 32, 130)
    one = jnp.ones((1, 1))
    y = interpreted(x, w, one, one, tiles=Tiles(16, 64, 32, 4, 2))
    np.testing.assert_array_equal(y, exact(x, w, one))


def normal(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(len(shape)), shape).astype(dtype)


@needs_triton
@pytest.mark.parametrize(
    ("images", "out_dtype"), [(1, jnp.bfloat16), (2, jnp.float32), (4, jnp.float16), (None, jnp.float32)]
)
def test_bias_gelu_gate_and_residual_are_those_of_the_reference(images, out_dtype):
    """Four images of 24 rows end inside of tiles, two of 48 and one of 96 do not. Within one unit of the last
    place, and of what GELU may lose times the gate: of y and of the bias, which y may almost cancel.
    """
    args, zeros = operands(96, 64, 72, x_zero=True)
    x, w, x_scale, w_scale = args
    args = (x, w, x_scale / 8, w_scale / 8)  # sums of about 1
    zeros = {"x_zero": zeros["x_zero"], "w_zero": None, "bias": normal(72, dtype=jnp.bfloat16)}
    gate = None if images is None else normal(images, 72)
    after = {"activation": "gelu", "residual": normal(96, 72, dtype=jnp.bfloat16), "gate": gate}
    y = np.asarray(
        interpreted(*args, **zeros, **after, out_dtype=out_dtype, tiles=Tiles(16, 64, 64, 4, 2)), float
    )
    before = reference.run(*args, **(NOTHING | zeros), out_dtype=jnp.float32)
    expected = np.asarray(reference.run(*args, **zeros, **after, out_dtype=jnp.float32), np.float64)
    most = 1 if gate is None else float(jnp.abs(gate).max())
    lost = 2.0**-20 * most * (np.abs(before) + np.abs(zeros["bias"].astype(float))) + ULP[out_dtype] * np.abs(
        expected
    )
    assert np.all(np.abs(y - expected) <= lost)


LAYERS = {
    "attn/qkv": (1152, 3456),
    "attn/proj": (1152, 1152),
    "mlp/fc1": (1152, 4608),
    "mlp/fc2": (4608, 1152),
}


def shapes(m, k, n, **more):
    given = {"x": ((m, k), jnp.int8), "w": ((n, k), jnp.int8), "x_scale": ((m, 1), jnp.float32)}
    given |= {"w_scale": ((n, 1), jnp.float32), "bias": ((n,), jnp.bfloat16)} | more
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in given.items()}


@needs_jax_triton
@GPUS
@pytest.mark.parametrize("layer", LAYERS)
def test_the_layers_of_pixart_are_products_of_int8_that_spill_nothing(layer, gpu):
    k, n = LAYERS[layer]
    m, more = 8192, {}
    if layer in ("attn/proj", "mlp/fc2"):
        more = {"residual": ((m, n), jnp.bfloat16), "gate": ((2, n), jnp.float32)}
    if layer == "attn/qkv":
        more = {"x_zero": ((m, 1), jnp.int8), "w_zero": ((n, 1), jnp.int8), "x_sum": ((m, 1), jnp.int32)}
    activation = "gelu" if layer == "mlp/fc1" else None
    given = shapes(m, k, n, **more)
    (kernel,) = kernels(lambda given: scaled_matmul(**given, activation=activation), given, gpu=gpu)
    assert kernel.opcodes["IMMA.16832.S8.S8.SAT"] >= 32
    assert kernel.count("LDGSTS") > 0  # copies past the registers
    assert kernel.spills == 0


@needs_jax_triton
@GPUS
@pytest.mark.parametrize("groups", [9, 18, 36])
def test_groups_of_128_64_and_32_spill_nothing(groups, gpu):
    given = shapes(8192, 1152, 1152, w_scale=((1152, groups), jnp.float32))
    (kernel,) = kernels(lambda given: scaled_matmul(**given), given, gpu=gpu)
    assert kernel.opcodes["IMMA.16832.S8.S8.SAT"] >= 8
    assert kernel.spills == 0


@needs_jax_triton
def test_codes_reach_the_tensor_cores_four_in_a_register():
    """Otherwise each register is put together from four, by five permutations of bytes for each product."""
    given = shapes(8192, 1152, 1152)
    (kernel,) = kernels(lambda given: scaled_matmul(**given), given, gpu=A100)
    assert kernel.count("IMMA") >= 32
    assert kernel.count("PRMT") < kernel.count("IMMA") / 8


@needs_jax_triton
@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (12, 0)], ids=str)
def test_newer_devices_that_no_other_kernel_is_for_are_lowered_to(capability):
    """1000 columns fit no tile of `mosaic_gpu`."""
    gpu = Gpu("NVIDIA H100, B200 or RTX 5090", capability, 132)
    text = str(lowered(lambda given: scaled_matmul(**given), shapes(64, 1152, 1000), gpu=gpu))
    assert text.count("@triton_kernel_call") == 1


def test_tiles_that_were_measured_belong_to_one_version_of_the_kernel(monkeypatch):
    """The kernel is imported when it is first needed, and is still a part of what the hash is of."""
    read = []
    monkeypatch.setattr(
        Path, "read_bytes", lambda file, kept=Path.read_bytes: (read.append(file), kept(file))[1]
    )
    for op in ("scaled_matmul", "packed_matmul", "quantize_rows"):
        tuning.kernel_hash.__wrapped__(op, "triton")
        kernel = "rows.py" if op == "quantize_rows" else "product.py"
        assert any(file.parts[-2:] == ("triton_kernels", kernel) for file in read)
        read.clear()


@needs_jax_triton
def test_a_program_for_ampere_is_one_kernel_and_has_no_other_product():
    text = str(lowered(lambda given: scaled_matmul(**given), shapes(64, 1152, 1152), gpu=A100))
    assert text.count("@triton_kernel_call") == 1
    assert "dot_general" not in text


@pytest.mark.parametrize("m", [2048, 4096, 8192, 16384])
@pytest.mark.parametrize("layer", LAYERS)
def test_tiles_keep_at_least_three_quarters_of_an_a100_busy(layer, m):
    k, n = LAYERS[layer]
    tiles, *others = ranked_tiles(m, n, k, k, packed=False, few=True, capability=(8, 0), cores=A100.cores)
    waves = -(-(-(-m // tiles.rows) * -(-n // tiles.columns)) // A100.cores)
    assert m * n / (waves * A100.cores * tiles.rows * tiles.columns) >= 0.75
    assert 0 < len(others) < CANDIDATES


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (None, "needs an NVIDIA GPU"),
        (Gpu("Tesla T4", (7, 5), 40), "needs compute capability 8.0, and Tesla T4 has 7.5"),
    ],
)
def test_other_devices_are_refused_by_name(monkeypatch, gpu, reason):
    monkeypatch.setattr(triton_kernels, "default_gpu", lambda: gpu)
    assert reason in (triton_kernels.wrong_device() or "")


def test_without_the_packages_the_reason_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with tracing_for(A100):
        reason = triton_kernels.wrong_device() or ""
    assert "triton and jax-triton" in reason
    assert "viditq-jax[triton]" in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": ((64, 1152), jnp.float8_e4m3fn)}, "takes int8 codes, not float8_e4m3fn"),
        ({"w_scale": ((1152, 144), jnp.float32)}, "groups of a multiple of 16 codes, got 8"),
        ({"x": ((0, 1152), jnp.int8)}, "got m=0"),
        ({"x": ((2**21, 1152), jnp.int8)}, "at most 2147483647 elements, got m=2097152"),
    ],
)
def test_what_the_kernel_cannot_do_has_a_reason(change, reason):
    assert reason in (misfit(**shapes(64, 1152, 1152, **change)) or "")
    assert misfit(**shapes(64, 1152, 1152)) is None
    assert "not float8" in (misfit(**shapes(64, 1152, 1152), out_dtype=jnp.float8_e4m3fn) or "")


def test_on_a_cpu_the_kernel_says_why_not_and_is_never_chosen():
    if jax.default_backend() != "cpu":
        pytest.skip(f"the default device is a {jax.default_backend()}")
    args, zeros = operands(8, 64, 64)
    reasons = dispatch.explain("scaled_matmul", *args, **zeros, **NOTHING, out_dtype=jnp.bfloat16)
    assert "needs an NVIDIA GPU" in (reasons["triton"] or "")
    assert reasons["xla"] is None
