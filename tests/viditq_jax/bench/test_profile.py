"""Where the time of a program goes."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import attention
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.scaled_matmul import scaled_matmul
from viditq_jax.bench.profile import KINDS, instructions, kind, shares


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ('%f = f32[8,8] fusion(%a), kind=kLoop, metadata={op_name="jit(f)/quantize_rows/abs"}', "quantize"),
        ('%c = f32[8,8] custom-call(%a), metadata={op_name="jit(f)/while/body/scaled_matmul/x"}', "matmul"),
        ('%d = f32[8,8] dot(%a, %b), metadata={op_name="jit(f)/attention/dot_general"}', "attention"),
        ('%y = f32[8,8] fusion(%a), kind=kCustom, metadata={op_name="jit(f)/k,nk->n/dot_general"}', "matmul"),
        ('%g = f32[8,8] custom-call(%a), custom_call_target="__cublas$gemm"', "matmul"),
        ('%m = f32[8,8] fusion(%a), kind=kLoop, metadata={op_name="jit(f)/mul"}', "elementwise"),
        ("%w = (f32[8]) while(%t), condition=%c, body=%b", None),
        ("%s = f32[8] sort(%t)", "other"),
    ],
)  # fmt: skip
def test_an_instruction_belongs_to_its_op_or_to_what_it_does(instruction, expected):
    assert kind(instruction) == expected


def test_the_shares_of_a_program_are_those_of_its_parts_and_sum_to_1():
    """Attention over 1024 tokens against a product of 64 rows."""

    @jax.jit
    def program(x, q):
        codes, scale, *_ = quantize_rows(x)
        y = scaled_matmul(codes, codes, scale, scale, implementation="xla")
        return y, attention(q, q, q)

    x, q = jnp.ones((64, 64)), jnp.ones((1, 1024, 4, 32))
    compiled = program.lower(x, q).compile()
    found = shares(lambda i: compiled(x, q), compiled)
    assert set(found) == set(KINDS)
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert found["attention"] > 0.5
    assert found["attention"] > found["matmul"] > 0
    assert found["quantize"] > 0


def test_instructions_are_found_by_name():
    text = "ENTRY %main {\n  %a.1 = f32[2] parameter(0)\n  ROOT %b-2 = f32[2] negate(%a.1)\n}"
    assert set(instructions(text)) == {"a.1", "b-2"}
