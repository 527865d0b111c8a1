"""Kernels and their bytes, from a compiled program in short: each number is worked out by hand."""

import pytest

from tests.machine_code.hlo import Module, nbytes

TEXT = """\
HloModule jit_layer, is_scheduled=true, entry_computation_layout={(s8[8,32]{1,0})->bf16[8,4]{1,0}}

%gemm_computation (parameter_0: s8[8,32], parameter_1: s8[16,32]) -> s32[8,16] {
  %parameter_0 = s8[8,32]{1,0} parameter(0)
  %parameter_1 = s8[16,32]{1,0} parameter(1)
  ROOT %dot.1 = s32[8,16]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%sliced (param_0: s32[8,16], param_1: f32[]) -> (bf16[8,4], f32[8]) {
  %param_0 = s32[8,16]{1,0} parameter(0)
  %param_1 = f32[] parameter(1)
  %slice.1 = s32[8,4]{1,0} slice(%param_0), slice={[0:8], [4:8]}
  %convert.1 = bf16[8,4]{1,0} convert(%slice.1)
  %broadcast.1 = f32[8]{0} broadcast(%param_1), dimensions={}
  ROOT %tuple.1 = (bf16[8,4]{1,0}, f32[8]{0}) tuple(%convert.1, %broadcast.1)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state = (s32[], f32[8]{0}) parameter(0)
  %element.1 = f32[8]{0} get-tuple-element(%state), index=1
  %element.2 = s32[] get-tuple-element(%state), index=0
  %copy.1 = f32[8]{0} copy(%element.1)
  ROOT %tuple.2 = (s32[], f32[8]{0}) tuple(%element.2, %copy.1)
}

%condition (state.1: (s32[], f32[8])) -> pred[] {
  %state.1 = (s32[], f32[8]{0}) parameter(0)
  ROOT %constant.1 = pred[] constant(true)
}

%command_buffer (p0: s8[8,32], p1: s8[16,32]) -> s32[8,16] {
  %p0 = s8[8,32]{1,0} parameter(0)
  %p1 = s8[16,32]{1,0} parameter(1)
  ROOT %gemm = s32[8,16]{1,0} fusion(%p0, %p1), kind=kCustom, calls=%gemm_computation, backend_config={"kind":"__triton_gemm"}
}

ENTRY %main.1 (x.1: s8[8,32], w.1: s8[2,8,32], s.1: f32[]) -> bf16[8,4] {
  %x.1 = s8[8,32]{1,0} parameter(0), metadata={op_name="x"}
  %w.1 = s8[2,8,32]{2,1,0} parameter(1), metadata={op_name="w"}
  %s.1 = f32[] parameter(2), metadata={op_name="s"}
  %bitcast.1 = s8[16,32]{1,0} bitcast(%w.1)
  %call.1 = s32[8,16]{1,0} call(%x.1, %bitcast.1), to_apply=%command_buffer
  %fusion.1 = (bf16[8,4]{1,0}, /*index=1*/f32[8]{0}) fusion(%call.1, %s.1), kind=kLoop, calls=%sliced, metadata={op_name="jit(layer)/mul (scaled)"}
  %element.3 = f32[8]{0} get-tuple-element(%fusion.1), index=1
  %constant.2 = s32[] constant(0)
  %tuple.3 = (s32[], f32[8]{0}) tuple(%constant.2, %element.3)
  %while.1 = (s32[], f32[8]{0}) while(%tuple.3), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %element.4 = bf16[8,4]{1,0} get-tuple-element(%fusion.1), index=0
}
"""  # noqa: E501 - as XLA prints it


def test_each_launch_moves_its_operands_and_its_results_once() -> None:
    """The loop runs its copy three times; the fusion reads a slice of the sums, 8 x 4 of 8 x 16."""
    found = [(kernel.name, kernel.read, kernel.written, kernel.times) for kernel in Module(TEXT).kernels]
    assert found == [
        ("gemm", 8 * 32 + 16 * 32, 8 * 16 * 4, 1),
        ("fusion.1", 8 * 4 * 4 + 4, 8 * 4 * 2 + 8 * 4, 1),
        ("copy.1", 8 * 4, 8 * 4, 3),
    ]
    assert Module(TEXT).kernels[2].moved == 3 * 64


def test_an_operand_that_is_given_twice_is_read_once() -> None:
    (gemm, *_) = Module(TEXT.replace("fusion(%p0, %p1)", "fusion(%p1, %p1)")).kernels
    assert gemm.read == 16 * 32


@pytest.mark.parametrize(
    ("type", "size"),
    [("f32[]", 4), ("s4[3,5]{1,0:E(4)}", 8), ("(bf16[2,3]{1,0}, pred[4]{0}, s8[0]{0})", 16), ("token[]", 0)],
)
def test_an_array_takes_its_elements_and_4_bit_ones_two_a_byte(type: str, size: int) -> None:
    assert nbytes(type) == size


def test_products_are_listed_with_their_types() -> None:
    assert list(Module(TEXT).products()) == [(["s8", "s8"], "s32")]


def test_a_product_outside_of_a_tiled_kernel_is_found() -> None:
    assert Module(TEXT).untiled_products() == []
    assert Module(TEXT.replace("kind=kCustom", "kind=kLoop")).untiled_products() == ["gemm"]


def test_a_loop_of_unknown_length_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"while\.1: how often the loop runs is unknown"):
        _ = Module(TEXT.replace("known_trip_count", "trips")).kernels
