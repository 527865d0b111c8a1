"""Counting instructions: what the disassembler and the object dumper print, in short."""

from collections import Counter

import pytest

from tests.machine_code.sass import SPILL_LOADS, SPILL_STORES, count, functions, kernels

LISTING = """
	.target	sm_90a
//--------------------- .text.product --------------------------
	.section	.text.product,"ax",@progbits
        .type           product,@function
product:
.text.product:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR12], RZ, !UPT ;
        /*0020*/              @!P0 IGMMA.64x128x32.S8.S8 R24, gdesc[UR12], R24 ;
        /*0030*/             @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0040*/                   STL.64 [R1], R24 ;
.L_x_0:
        /*10050*/                  LDL R24, [R1+0x8] ;
        /*10060*/              @P1 BRA `(.L_x_0) ;
	.section	.text.rows,"ax",@progbits
        /*0000*/                   EXIT ;
	.section	.nv.constant0.rows,"a",@progbits
"""
NESTED = """
	.section	.text.nested,"ax",@progbits
.text.nested:
        /*0000*/                   MOV R1, R2 ;
.L_x_1:
        /*0010*/                   STL [R1], R24   (*"SpillRef"*);
        /*0020*/                   IGMMA.B R24, gdesc[UR12], R24 ;
.L_x_2:
.L_x_3:
        /*0030*/                   SYNCS.PHASECHK P0, [UR4] ;
        /*0040*/              @!P0 BRA `(.L_x_3) ;
        /*0050*/                   IGMMA.A R24, gdesc[UR12], R24 ;
        /*0060*/               @P3 BRA `(.L_x_2) ;
        /*0070*/                   LDL R24, [R1] ;
        /*0080*/               @P1 BRA `(.L_x_4) ;
        /*0090*/               @P2 BRA `(.L_x_1) ;
.L_x_4:
        /*00a0*/                   EXIT ;
.L_x_5:
        /*00b0*/                   BRA `(.L_x_5);
"""
RESOURCES = """
Resource usage:
 Common:
  GLOBAL:0
 Function rows:
  REG:20 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function product:
  REG:168 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_instructions_are_counted_by_kernel_with_and_without_a_predicate() -> None:
    product, rows = kernels(LISTING, RESOURCES)
    assert (product.name, product.registers, product.stack) == ("product", 168, 16)
    assert product.products == {"IGMMA.64x128x32.S8.S8": 2}
    assert product.instructions.total() == 7
    assert (rows.name, rows.registers, rows.stack) == ("rows", 20, 0)
    assert rows.instructions == {"EXIT": 1}


def test_a_name_counts_with_every_suffix_and_no_other_name_with_it() -> None:
    product, _ = kernels(LISTING, RESOURCES)
    assert count(product.instructions, "IGMMA") == 2
    assert count(product.instructions, "IMMA", "HGMMA", "MMA") == 0


def test_local_memory_is_a_spill() -> None:
    product, rows = kernels(LISTING, RESOURCES)
    assert count(product.instructions, SPILL_STORES) == count(product.instructions, SPILL_LOADS) == 1
    assert not count(rows.instructions, SPILL_STORES, SPILL_LOADS)


def test_the_inner_loop_is_the_smallest_around_products_and_first_steps_before_it_are_not_in_it() -> None:
    """A loop over tiles has a product of its own, then the loop over k, which waits in a third."""
    (body,) = functions(NESTED).values()
    assert body.inner() == Counter({"SYNCS.PHASECHK": 1, "IGMMA.A": 1, "BRA": 2})


def test_without_a_loop_over_k_the_loop_over_tiles_is_the_inner_one() -> None:
    """As the compiler unrolls few steps."""
    (body,) = functions(NESTED.replace("@P3 BRA `(.L_x_2)", "NOP")).values()
    assert count(body.inner(), SPILL_STORES, SPILL_LOADS) == 2


def test_listings_of_different_binaries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"only one of the two listings has \['rows'\]"):
        kernels(LISTING, RESOURCES.replace("Function rows", "Function columns").replace("columns", "product"))
