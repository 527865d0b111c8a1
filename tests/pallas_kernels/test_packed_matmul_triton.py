"""packed_matmul through jax-triton as far as a machine without a GPU can tell: interpreted, and assembled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.packed_matmul import packed_matmul, reference
from pallas_kernels.packed_matmul.cases import CASES
from pallas_kernels.packed_matmul.triton import launch, misfit
from pallas_kernels.packing import pack
from pallas_kernels.scaled_matmul._triton import Tiles, ranked_tiles
from tests.pallas_kernels.triton_interpreter import in_interpreter, needs_triton
from tests.pallas_kernels.triton_machine_code import A100, GPUS, kernels, lowered, needs_jax_triton

NOTHING = dict.fromkeys(("bias", "activation", "residual", "gate"))
ONE = np.ones((1, 1), np.float32)
FITTING = [name for name, (_, k, _, groups) in CASES.items() if k // 2 % 32 == k // groups % 32 == 0]


def operands(m, k, n, groups, seed=0):
    """Codes and zero points of the whole range, the lowest codes among them for certain."""
    rng = np.random.default_rng(seed)
    x, codes = rng.integers(-128, 128, (m, k)), rng.integers(-8, 8, (n, k))
    x[0], codes[0] = -128, -8
    zeros = {"x_zero": rng.integers(-128, 128, (m, 1)), "w_zero": rng.integers(-8, 8, (n, groups))}
    return x, codes, {name: jnp.asarray(zero, jnp.int8) for name, zero in zeros.items()}


def interpreted(x, codes, w_scale, *, tiles, x_scale=ONE, out_dtype=jnp.float32, **options):
    w = pack(jnp.asarray(codes, jnp.int8))
    return launch(
        jnp.asarray(x, jnp.int8), w, jnp.asarray(x_scale), w_scale, **(NOTHING | options),
        out_dtype=out_dtype, tiles=tiles, run=in_interpreter,
    )  # fmt: skip


@needs_triton
@pytest.mark.parametrize(
    ("case", "given"),
    [
        *((case, ("x_zero", "w_zero")) for case in FITTING),
        *((FITTING[1], (name,)) for name in ("x_zero", "w_zero")),
    ],
)
def test_sums_of_packed_codes_less_their_zero_points_are_exact(case, given):
    """Scales of 1 and 2 leave the conversion of each sum to float32, and the sums of groups, to round."""
    m, k, n, groups = CASES[case]
    x, codes, zeros = operands(m, k, n, groups)
    zeros = {name: zeros[name] for name in given}
    w_scale = np.where(np.arange(groups) % 2, 2, 1).astype(np.float32)[None]
    (tiles, *_) = ranked_tiles(m, n, k, k // groups, packed=True, few=False, capability=(8, 9), cores=128)
    wide = tiles._replace(rows=64, columns=256)  # the interpreter takes as long for a block of any size
    y = interpreted(x, codes, jnp.asarray(w_scale), **zeros, tiles=wide)
    x = (x - np.asarray(zeros.get("x_zero", 0), int)).reshape(m, groups, -1)
    w = codes.reshape(n, groups, -1)
    w = w - np.asarray(zeros["w_zero"], int)[..., None] if "w_zero" in zeros else w
    expected = np.zeros((m, n), np.float32)
    for g in range(groups):
        expected += (x[:, g] @ w[:, g].T).astype(np.float32) * w_scale[0, g]
    np.testing.assert_array_equal(y, expected)


@needs_triton
def test_sums_that_are_given_are_used():
    """w_sum is of w less its zero points, and another one gives another result."""
    x, codes, zeros = operands(16, 64, 32, 1)
    w_sum = jnp.asarray((codes - np.asarray(zeros["w_zero"])).sum(1, keepdims=True), jnp.int32)
    tiles, one = Tiles(16, 32, 32, 4, 2), jnp.ones((1, 1))
    y = interpreted(x, codes, one, **zeros, w_sum=w_sum, tiles=tiles)
    np.testing.assert_array_equal(y, interpreted(x, codes, one, **zeros, tiles=tiles))
    other = interpreted(x, codes, one, **zeros, w_sum=w_sum + 1, tiles=tiles)
    np.testing.assert_array_equal(other - y, jnp.broadcast_to(-zeros["x_zero"].astype(jnp.float32), (16, 32)))


@needs_triton
def test_an_epilogue_follows_as_in_scaled_matmul():
    """Within 2**-20 of what GELU takes, of the bias and of the result: what rounding and GELU may lose."""
    x, codes, zeros = operands(20, 64, 24, 2)
    rng = np.random.default_rng(1)
    x_scale, w_scale, bias, residual, gate = (
        jnp.asarray(rng.uniform(0.5, 1, shape), jnp.float32)
        for shape in ((20, 1), (24, 2), (24,), (20, 24), (2, 24))
    )
    options = zeros | {"bias": bias, "activation": "gelu", "residual": residual, "gate": gate}
    y = interpreted(
        x, codes, w_scale / 256, x_scale=x_scale / 16, **options, tiles=Tiles(16, 32, 32, 4, 2)
    )  # fmt: skip
    w = pack(jnp.asarray(codes, jnp.int8))
    given = jnp.asarray(x, jnp.int8), w, x_scale / 16, w_scale / 256
    expected = reference.run(*given, **options, w_sum=None, out_dtype=jnp.float32)
    before = reference.run(*given, **(NOTHING | zeros | {"bias": bias}), w_sum=None, out_dtype=jnp.float32)
    assert np.all(np.abs(y - expected) <= 2.0**-20 * (np.abs(before) + np.abs(expected) + 1))


@needs_jax_triton
@GPUS
@pytest.mark.parametrize(
    ("k", "n", "groups"),
    [(1152, 3456, 1), (1152, 1152, 9), (1152, 1152, 18), (1152, 1152, 36), (4608, 1152, 1), (4608, 1152, 72)],
)
def test_codes_are_unpacked_four_at_a_time(k, n, groups, gpu):
    """Put together one by one they take 22 permutations of bytes for each product."""
    given = {
        "x": jax.ShapeDtypeStruct((8192, k), jnp.int8),
        "w": jax.ShapeDtypeStruct((n, k // 2), jnp.uint8),
        "x_scale": jax.ShapeDtypeStruct((8192, 1), jnp.float32),
        "w_scale": jax.ShapeDtypeStruct((n, groups), jnp.float32),
        "w_zero": jax.ShapeDtypeStruct((n, groups), jnp.int8),
    }
    (kernel,) = kernels(lambda given: packed_matmul(**given), given, gpu=gpu)
    assert kernel.opcodes["IMMA.16832.S8.S8.SAT"] >= 8
    assert kernel.count("PRMT") < kernel.count("IMMA")
    assert kernel.spills == 0


@needs_jax_triton
def test_weights_stay_packed_outside_of_the_kernel():
    shape = jax.ShapeDtypeStruct
    given = shape((64, 1152), jnp.int8), shape((1152, 576), jnp.uint8), *[shape((1, 1), jnp.float32)] * 2
    text = str(lowered(packed_matmul, *given, gpu=A100))
    assert text.count("@triton_kernel_call") == 1
    assert "tensor<1152x1152x" not in text


@pytest.mark.parametrize(
    ("k", "groups", "reason"),
    [
        (96, 1, "halves of a row, of a multiple of 32 codes, got groups of 96 and halves of 48"),
        (128, 8, "got groups of 16 and halves of 64"),
        (2**18, 1, "groups of at most 131071 codes, got 262144"),
    ],
)
def test_what_the_kernel_cannot_do_has_a_reason(k, groups, reason):
    x, w, one = jnp.ones((8, k), jnp.int8), jnp.ones((64, k // 2), jnp.uint8), jnp.ones((1, 1))
    assert reason in (misfit(x, w, one, jnp.ones((1, groups))) or "")
    assert misfit(jnp.ones((8, 64), jnp.int8), jnp.ones((64, 32), jnp.uint8), one, one) is None


def test_on_a_cpu_the_kernel_says_why_not_and_cannot_be_had_by_name():
    if jax.default_backend() != "cpu":
        pytest.skip(f"the default device is a {jax.default_backend()}")
    x, w, one = jnp.ones((8, 128), jnp.int8), jnp.ones((64, 64), jnp.uint8), jnp.ones((1, 1))
    with pytest.raises(dispatch.UnsupportedError, match="'triton' was asked for, but it needs an NVIDIA GPU"):
        packed_matmul(x, w, one, one, implementation="triton")
