"""Instructions of NVIDIA GPUs that Pallas has no operation for, on arrays in registers.

Each is a function of arrays whose layout is known, and has a plain meaning, which the interpreter computes.
The layouts are tiled, where a register is the vector of neighbouring channels that a lane holds, or that of a
number without axes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.lib.mlir.dialects import arith, llvm
from jax._src.lib.mlir.dialects import vector as vectors
from jax.experimental.mosaic.gpu import FragmentedArray, utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.extend.mlir import ir

from pallas_kernels.compat import Target


def divided_by(x: jax.Array, dividend: np.float32, *, target: Target, layout: Any) -> jax.Array:
    """dividend / x as IEEE rounds it, float32; `/` of a compiled kernel may be off by two last places."""
    if target.interpret is not None:
        return dividend / x

    def quotient(divisor: ir.Value) -> ir.Value:
        f32 = ir.F32Type.get()
        return _ptx(f32, "div.rn.f32 $0, $1, $2;", "f", utils.c(float(dividend), f32), divisor)

    return _registers(functools.partial(_per_element, quotient), jnp.float32, layout, x)


def to_int8(x: jax.Array, *, target: Target, layout: Any) -> jax.Array:
    """x rounded half to even, between -128 and 127, NaN as 0: two instructions for what is five in Pallas."""
    if target.interpret is not None:
        return jnp.where(x == x, jnp.clip(jnp.round(x), -128, 127), 0).astype(jnp.int8)

    def packed(register: ir.Value) -> ir.Value:
        i32 = ir.IntegerType.get_signless(32)
        numbers = [_ptx(i32, "cvt.rni.s32.f32 $0, $1;", "f", each) for each in _elements(register)]
        words = [_word(numbers[start : start + 4]) for start in range(0, len(numbers), 4)]
        return words[0] if len(words) == 1 else utils.vector_concat(words)

    return _registers(packed, jnp.int8, layout, x)


def exchange(x: jax.Array, bit: int, *, target: Target, layout: Any, vector: int) -> jax.Array:
    """x with channel j where channel j ^ 2**bit was: channels are the last axis, and those two in one warp.

    vector: channels of a lane, a power of 2; the next are in the next lane.
    """
    if target.interpret is not None:
        halves = x.reshape(-1, 2, 2**bit)
        return halves[:, ::-1].reshape(x.shape)

    def exchanged(register: ir.Value) -> ir.Value:
        if 2**bit >= vector:
            return utils.shfl_bfly(register, 2**bit // vector)
        runs = [slice(start, start + 2**bit) for start in range(0, vector, 2**bit)]
        return utils.vector_concat([utils.vector_slice(register, runs[i ^ 1]) for i in range(len(runs))])

    return _registers(exchanged, x.dtype, layout, x)


def _registers(
    of_register: Callable[[ir.Value], ir.Value], dtype: Any, layout: Any, x: jax.Array
) -> jax.Array:
    """A function of each register."""
    result = plgpu.ShapeDtypeStruct(x.shape, dtype, layout=layout)

    @plgpu.inline_mgpu(arg_types=(layout,), return_type=result)
    def inline(_: Any, array: FragmentedArray) -> FragmentedArray:
        made = np.empty_like(array.registers)
        for index, register in np.ndenumerate(array.registers):
            made[index] = of_register(register)
        signed = True if jnp.issubdtype(dtype, jnp.integer) else None
        return FragmentedArray(_registers=made, _layout=array.layout, _is_signed=signed)

    return inline(x)


def _elements(register: ir.Value) -> list[ir.Value]:
    positions = range(ir.VectorType(register.type).shape[0])
    return [vectors.extract(register, dynamic_position=[], static_position=[i]) for i in positions]


def _per_element(of_element: Callable[[ir.Value], ir.Value], register: ir.Value) -> ir.Value:
    if not isinstance(register.type, ir.VectorType):
        return of_element(register)
    return vectors.from_elements(register.type, list(map(of_element, _elements(register))))


def _word(numbers: list[ir.Value]) -> ir.Value:
    """1, 2 or 4 int32 as a vector of int8 that saturates, the first lowest."""
    i32, i8 = ir.IntegerType.get_signless(32), ir.IntegerType.get_signless(8)
    word: ir.Value = utils.c(0, i32)
    padded = [*numbers, word] if len(numbers) == 1 else numbers
    for low, high in reversed(list(zip(padded[::2], padded[1::2], strict=True))):
        # Takes the upper of two numbers first, and what it shifts up by 16 bits last.
        word = _ptx(i32, "cvt.pack.sat.s8.s32.b32 $0, $1, $2, $3;", "r", high, low, word)
    if len(numbers) < 4:
        word = arith.trunci(ir.IntegerType.get_signless(8 * len(numbers)), word)
    return utils.bitcast(word, ir.VectorType.get((len(numbers),), i8))


def _ptx(result: ir.Type, instruction: str, register: str, *operands: ir.Value) -> ir.Value:
    """An instruction whose operands and result are of one kind of register: f or r; of conversions, to r."""
    to = "f" if isinstance(result, ir.F32Type) else "r"
    constraints = ",".join([f"={to}", *[register] * len(operands)])
    value: Any = llvm.inline_asm(result, operands, instruction, constraints)
    return value
