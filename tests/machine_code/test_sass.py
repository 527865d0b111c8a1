"""Counting instructions: what the disassembler and the object dumper print, in short."""

import pytest

from tests.machine_code.sass import kernels

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
    assert product.count("IGMMA") == 2
    assert product.count("IMMA", "HGMMA", "MMA") == 0


def test_local_memory_is_a_spill() -> None:
    product, rows = kernels(LISTING, RESOURCES)
    assert (product.spills, rows.spills) == (2, 0)


def test_listings_of_different_binaries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"only one of the two listings has \['rows'\]"):
        kernels(LISTING, RESOURCES.replace("Function rows", "Function columns").replace("columns", "product"))
