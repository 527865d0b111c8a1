"""scaled_matmul on Hopper as far as a machine without one can tell: interpreted, and lowered for CUDA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.compat import interpreted, races_found
from pallas_kernels.devices import Gpu
from pallas_kernels.scaled_matmul import reference
from pallas_kernels.scaled_matmul._sm90 import BARRIERS, DEPTH, SHARED, Tiles, most_stages
from pallas_kernels.scaled_matmul._sm90_epilogue import GROUPS, Epilogue
from pallas_kernels.scaled_matmul.mosaic_gpu import (
    LEAST_STAGES,
    SHAPES,
    choose_tiles,
    launch,
    misfit,
    wrong_device,
)
from tests.pallas_kernels.interpretation import limited, lowered_for_cuda

H100 = 132  # multiprocessors
NOTHING = dict.fromkeys(("x_zero", "w_zero", "bias", "activation", "residual", "gate"))
ULP = {jnp.bfloat16: 2.0**-8, jnp.float16: 2.0**-11, jnp.float32: 2.0**-24}


def operands(m, k, n, seed=0):
    """Codes of the whole range, scales whose products are of about 1, and zero points."""
    rng = np.random.default_rng(seed)
    x, w, x_zero, w_zero = (
        jnp.asarray(rng.integers(-128, 128, shape), jnp.int8) for shape in ((m, k), (n, k), (m, 1), (n, 1))
    )
    x_scale, w_scale = (jnp.asarray(rng.uniform(0.5, 2, (rows, 1)), jnp.float32) for rows in (m, n))
    return (x, w, x_scale / 64, w_scale / 1024), {"x_zero": x_zero, "w_zero": w_zero}


def normal(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(len(shape)), shape).astype(dtype)


def test_sums_with_zero_points_are_exact_over_a_ring_that_turns_and_rows_that_end_anywhere():
    """Two tiles of rows and of columns in one block, three steps each in two slots; 136 rows of 256."""
    (x, w, *_), zeros = operands(136, 3 * DEPTH, 128)
    one = jnp.ones((1, 1))
    with limited():
        y = launch(
            x, w, one, one, **zeros, out_dtype=jnp.float32, cores=1, tiles=Tiles(128, 64, 1, 2),
            target=interpreted(detect_races=True, clips=True),
        )  # fmt: skip
    x64, w64 = np.asarray(x, np.int64), np.asarray(w, np.int64)
    exact = (x64 - np.asarray(zeros["x_zero"])) @ (w64 - np.asarray(zeros["w_zero"])).T
    np.testing.assert_array_equal(y, exact.astype(np.float32))
    assert not races_found()


def close(y, args, options, dtype):
    """Within one unit of the last place of the dtype, and of what GELU and the gate may lose."""
    options = NOTHING | options
    expected = np.asarray(reference.run(*args, **options, out_dtype=jnp.float32), np.float64)
    gate = 1 if options["gate"] is None else np.abs(np.asarray(options["gate"], np.float64)).max()
    before = NOTHING | {name: options[name] for name in ("x_zero", "w_zero", "bias")}
    lost = 2.0**-20 * gate * np.abs(reference.run(*args, **before, out_dtype=jnp.float32))
    return np.all(np.abs(np.asarray(y, np.float64) - expected) <= ULP[dtype] * np.abs(expected) + lost)


def test_gelu_gate_and_residual_are_those_of_the_reference_also_where_an_image_ends_inside_a_part():
    """Images of 72 rows: the second ends at row 144, the first inside of the second part of 64 rows."""
    args, _ = operands(144, DEPTH, 192)
    options = {
        "bias": normal(192, dtype=jnp.bfloat16), "activation": "gelu",
        "residual": normal(144, 192, dtype=jnp.bfloat16), "gate": normal(2, 192),
    }  # fmt: skip
    with limited():
        y = launch(
            *args, **options, cores=1, tiles=Tiles(128, 192, 1, 2),
            target=interpreted(detect_races=True, clips=True),
        )  # fmt: skip
    assert y.dtype == jnp.bfloat16
    assert close(y, args, options, jnp.bfloat16)
    assert not races_found()


def test_tiles_that_neither_rows_nor_columns_fill_equal_the_reference():
    args, zeros = operands(160, DEPTH, 64)
    options = {"x_zero": zeros["x_zero"], "gate": normal(2, 64), "residual": normal(160, 64)}
    with limited():
        y = launch(
            *args, **options, out_dtype=jnp.float32, cores=1, tiles=Tiles(128, 48, 1, 2),
            target=interpreted(clips=True),
        )  # fmt: skip
    assert close(y, args, options, jnp.float32)


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


@pytest.mark.parametrize("layer", LAYERS)
def test_the_layers_of_pixart_lower_for_cuda_with_their_epilogues(layer):
    """As a machine with a GPU would: tiles chosen, nothing interpreted."""
    k, n = LAYERS[layer]
    m, more = 8192, {}
    if layer in ("attn/proj", "mlp/fc2"):
        more = {"residual": ((m, n), jnp.bfloat16), "gate": ((2, n), jnp.float32)}
    if layer == "attn/qkv":
        more = {"x_zero": ((m, 1), jnp.int8), "w_zero": ((n, 1), jnp.int8), "x_sum": ((m, 1), jnp.int32)}
    activation = "gelu" if layer == "mlp/fc1" else None
    given = shapes(m, k, n, **more)
    assert misfit(**given) is None
    text = lowered_for_cuda(lambda given: launch(**given, activation=activation, cores=H100), given)
    assert text.count("@mosaic_gpu") == 1
    assert "dot_general" not in text


@pytest.mark.parametrize("groups", [9, 18, 36])
def test_groups_of_128_64_and_32_lower_for_cuda(groups):
    given = shapes(8192, 1152, 1152, w_scale=((1152, groups), jnp.float32))
    assert misfit(**given) is None
    assert "@mosaic_gpu" in lowered_for_cuda(lambda given: launch(**given, cores=H100), given)


@pytest.mark.parametrize("m", [1, 40, 8184])
def test_rows_that_fill_no_tile_lower_for_cuda(m):
    given = shapes(m, 1152, 1152, residual=((m, 1152), jnp.bfloat16))
    assert misfit(**given) is None
    assert "@mosaic_gpu" in lowered_for_cuda(lambda given: launch(**given, cores=H100), given)


@pytest.mark.parametrize("out_dtype", ULP)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_ring_and_an_epilogue_fill_shared_memory_and_no_more(shape, out_dtype):
    given = shapes(
        8192, 1152, 1152, residual=((8192, 1152), out_dtype), gate=((2, 1152), jnp.float32),
        w_sum=((1152,), jnp.int32), w_zero=((1152,), jnp.int32),
    )  # fmt: skip
    rows, columns = shape
    stages = most_stages(rows, columns, given, out_dtype)
    ring = stages * (rows + columns) * DEPTH
    rest = SHARED - Epilogue(given, None, out_dtype, rows, columns, interpreted()).bytes() - BARRIERS
    assert ring <= rest < ring + (rows + columns) * DEPTH


@pytest.mark.parametrize("m", [2048, 4096, 8192, 16384])
@pytest.mark.parametrize("layer", LAYERS)
def test_tiles_keep_at_least_nine_tenths_of_an_h100_busy(layer, m):
    """With tiles of 128 x 128 and no choice, 1152 columns of 2048 rows would leave it half idle."""
    k, n = LAYERS[layer]
    tiles = choose_tiles(shapes(m, k, n), jnp.bfloat16, cores=H100)
    blocks = -(-m // (tiles.rows * tiles.cluster)) * -(-n // tiles.columns) * tiles.cluster
    waves = -(-blocks // H100)
    assert m * n / (waves * H100 * tiles.rows * tiles.columns) >= 0.9
    assert tiles.stages >= LEAST_STAGES
    assert tiles.rows % GROUPS == 0


def test_a_device_of_one_core_has_tiles_and_no_clusters():
    assert choose_tiles(shapes(8192, 1152, 1152), jnp.bfloat16, cores=1).cluster == 1


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (None, "needs an NVIDIA GPU"),
        (Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108), "9.0 (Hopper), and NVIDIA A100-SXM4-80GB has 8.0"),
        (Gpu("NVIDIA B200", (10, 0), 148), "has 10.0"),
    ],
)
def test_other_devices_are_refused_by_name(gpu, reason):
    assert reason in (wrong_device(gpu) or "")
    assert wrong_device(Gpu("NVIDIA H100 80GB HBM3", (9, 0), H100)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": ((64, 1152), jnp.float8_e4m3fn)}, "takes int8 codes, not float8_e4m3fn"),
        ({"w_scale": ((1152, 12), jnp.float32)}, "a multiple of 128 codes, or of one of [64, 32], got 96"),
        ({"x": ((64, 192), jnp.int8)}, "a multiple of 128 codes, or of one of [64, 32], got 192"),
        ({"w": ((1000, 1152), jnp.int8)}, "n=1000"),
        ({"x": ((63, 1152), jnp.int8)}, "m=63"),
        (
            {"residual": ((64, 1152), jnp.float32)},
            "residual of the dtype that it writes, bfloat16, not float32",
        ),
        ({"gate": ((4, 1152), jnp.float32)}, "images of 64 rows at least for a gate, got 16"),
    ],
)
def test_what_the_kernel_cannot_do_has_a_reason(change, reason):
    given = shapes(64, 1152, 1152, **change)
    assert reason in (misfit(**given) or "")
    assert misfit(**shapes(64, 1152, 1152)) is None


def test_on_a_cpu_the_kernel_says_why_not_and_is_never_chosen():
    args, _ = operands(8, DEPTH, 64)
    reasons = dispatch.explain("scaled_matmul", *args, **NOTHING, out_dtype=jnp.bfloat16)
    if jax.default_backend() != "cpu":
        pytest.skip(f"the default device is a {jax.default_backend()}")
    assert "needs an NVIDIA GPU" in (reasons["mosaic_gpu"] or "")
    assert reasons["xla"] is None
