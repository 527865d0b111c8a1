"""Each op through XLA, on every case of its contract, exported for devices that are not here.

Products of integers stay so: of a float product, or of one whose sums are kept in 8 bits, nothing would be
seen in the results of this machine's own program.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import attention
from pallas_kernels.attention import cases as heads
from pallas_kernels.hadamard import cases as rotations
from pallas_kernels.hadamard import hadamard
from pallas_kernels.packed_matmul import cases as packed
from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.quantize_rows import cases as rows
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.scaled_matmul import cases as products
from pallas_kernels.scaled_matmul import scaled_matmul

PLATFORMS = ("cuda", "tpu")
FP8 = jnp.float8_e4m3fn
_DOT = re.compile(
    r"dot_general .*: \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\) -> tensor<(?:\d+x)*(\w+)>"
)


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def exported(function, *arguments):
    """The program for all platforms together, and the element types of its products."""
    program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert program.platforms == PLATFORMS
    return program, _DOT.findall(program.mlir_module())


def operands(m, k, n, groups, w):
    """All that both products take, but for the sums of what they take only one."""
    zeros = {"x_zero": array(m, 1, dtype=jnp.int8), "w_zero": array(n, groups, dtype=jnp.int8)}
    after = {"bias": array(n), "residual": array(m, n), "gate": array(1, n)}
    return (array(m, k, dtype=jnp.int8), w, array(m, 1), array(n, groups)), zeros | after


@pytest.mark.parametrize("case", products.CASES)
def test_scaled_matmul_is_integer_products_summed_in_int32(case):
    m, k, n, groups = products.CASES[case]
    args, given = operands(m, k, n, groups, array(n, k, dtype=jnp.int8))
    program, dots = exported(
        lambda args, given: scaled_matmul(*args, **given, activation="gelu", implementation="xla"),
        args,
        given,
    )
    assert set(dots) == {("i8", "i8", "i32")}
    (result,) = program.out_avals
    assert (result.shape, result.dtype) == ((m, n), jnp.bfloat16)


@pytest.mark.parametrize("case", packed.CASES)
def test_packed_matmul_is_integer_products_summed_in_int32(case):
    m, k, n, groups = packed.CASES[case]
    args, given = operands(m, k, n, groups, array(n, k // 2, dtype=jnp.uint8))
    program, dots = exported(
        lambda args, given: packed_matmul(*args, **given, activation="gelu", implementation="xla"),
        args,
        given,
    )
    assert set(dots) == {("i8", "i8", "i32")}
    (result,) = program.out_avals
    assert (result.shape, result.dtype) == ((m, n), jnp.bfloat16)


@pytest.mark.parametrize("case", products.CASES)
def test_scaled_matmul_of_float8_is_products_of_float8_summed_in_float32(case):
    m, k, n, groups = products.CASES[case]
    args = array(m, k, dtype=FP8), array(n, k, dtype=FP8), array(m, 1), array(n, groups)
    _, dots = exported(lambda *args: scaled_matmul(*args, implementation="xla"), *args)
    assert set(dots) == {("f8E4M3FN", "f8E4M3FN", "f32")}


@pytest.mark.parametrize(
    "codes", [{"symmetric": False, "with_sum": True}, {"dtype": FP8}], ids=["int8", "fp8"]
)
@pytest.mark.parametrize("case", rows.CASES)
def test_quantize_rows_gives_codes_of_a_byte(case, codes):
    m, k = rows.CASES[case]
    program, _ = exported(
        lambda x: quantize_rows(x, **codes, implementation="xla"), array(m, k, dtype=jnp.bfloat16)
    )
    first = program.out_avals[0]
    assert (first.shape, first.dtype) == ((m, k), codes.get("dtype", jnp.int8))


@pytest.mark.parametrize("case", rows.FUSED)
def test_quantize_rows_takes_its_steps_in_the_same_program(case):
    m, k, samples, activation, balanced, block, regular = rows.FUSED[case]
    given = {"signs": array(-(-k // 8), dtype=jnp.uint8)} if block else {}
    given |= {"balance": array(k)} if balanced else {}
    given |= {"modulation": (array(samples, k), array(samples, k))} if samples else {}
    static = {"activation": activation, "block": block, "regular": regular, "implementation": "xla"}
    program, _ = exported(
        lambda x, given: quantize_rows(x, **given, **static), array(m, k, dtype=jnp.bfloat16), given
    )
    first = program.out_avals[0]
    assert (first.shape, first.dtype) == ((m, k), jnp.int8)


@pytest.mark.parametrize("case", rotations.CASES)
def test_hadamard_gives_rows_of_the_same_shape(case):
    m, k, block, regular = rotations.CASES[case]
    program, _ = exported(
        lambda x: hadamard(x, block=block, regular=regular, implementation="xla"), array(m, k)
    )
    (result,) = program.out_avals
    assert (result.shape, result.dtype) == ((m, k), jnp.float32)


@pytest.mark.parametrize("case", heads.CASES)
def test_attention_of_8_bits_has_scores_that_are_integer_products_summed_in_int32(case):
    b, n, l, h, d = heads.CASES[case]  # noqa: E741
    q, k = array(b, n, h, d, dtype=jnp.bfloat16), array(b, l, h, d, dtype=jnp.bfloat16)
    program, dots = exported(lambda q, k, v: attention(q, k, v, qk_bits=8, implementation="xla"), q, k, k)
    assert ("i8", "i8", "i32") in dots
    (result,) = program.out_avals
    assert (result.shape, result.dtype) == (q.shape, q.dtype)
