"""What is compiled for a GPU and looked at, as data: a row a kernel and shape. A new kernel is a new row."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.hadamard import hadamard
from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.scaled_matmul import scaled_matmul

# Linear layers as (m, k, n): tokens, inputs, outputs; guidance doubles the tokens of one picture.
SHAPES = {
    "pixart-1024 attn/qkv": (8192, 1152, 3456),
    "pixart-1024 attn/proj": (8192, 1152, 1152),
    "pixart-1024 mlp/fc1": (8192, 1152, 4608),
    "pixart-1024 mlp/fc2": (8192, 4608, 1152),
}
INT8 = {"sm_80": "IMMA", "sm_89": "IMMA", "sm_90": "IGMMA"}
WITHOUT = dict.fromkeys(INT8, "")


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One op at one shape through one implementation.

    options: optional operands by name, made with the shapes that the contract gives them, and "gelu", "sum",
        "gate" (with its residual). dtype: of the codes.
    instruction: per target, the tensor-core instruction that must be in it; "" where there is no product, or
        one by a library.
    """

    op: str
    implementation: str
    shape: str
    instruction: dict[str, str]
    options: tuple[str, ...] = ()
    dtype: Any = jnp.int8

    @property
    def name(self) -> str:
        """Unique among the rows."""
        codes = () if self.dtype == jnp.int8 else (jnp.dtype(self.dtype).name,)
        return ", ".join([f"{self.op}/{self.implementation} {self.shape}", *codes, *self.options])

    def program(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The function to compile, and the shapes of what it takes."""
        return OPS[self.op](self)

    def reasons(self) -> dict[str, str | None]:
        """Of every implementation of the op, why it cannot do this on the default device; None: it can."""
        found: dict[str, str | None] = {}
        run = dispatch.run

        def explain(op: str, _: str | None, *args: Any, **options: Any) -> Any:
            found.update(dispatch.explain(op, *args, **options))
            return run(op, dispatch.REFERENCE, *args, **options)

        function, shapes = self.program()
        with mock.patch.object(dispatch, "run", explain):
            jax.eval_shape(function, *shapes)
        return found


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _matmul(row: Row) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    m, k, n = SHAPES[row.shape]
    groups = k // _sized("group", row, k)
    packed = row.op == "packed_matmul"
    weight = _array(n, k // 2, dtype=jnp.uint8) if packed else _array(n, k, dtype=row.dtype)
    operands = _array(m, k, dtype=row.dtype), weight, _array(m, 1), _array(n, groups)
    optional = {
        "x_zero": _array(m, 1, dtype=jnp.int8),
        "w_zero": _array(n, groups, dtype=jnp.int8),
        "x_sum": _array(m, groups, dtype=jnp.int32),
        "w_sum": _array(n, groups, dtype=jnp.int32),
        "bias": _array(n, dtype=jnp.bfloat16),
        "residual": _array(m, n, dtype=jnp.bfloat16),
        "gate": _array(2, n, dtype=jnp.bfloat16),
    }
    given = {name: array for name, array in optional.items() if name in row.options}
    static = {"activation": "gelu"} if "gelu" in row.options else {}
    op = packed_matmul if packed else scaled_matmul

    def program(given: dict[str, jax.Array], *operands: jax.Array) -> Any:
        return op(*operands, **given, **static, implementation=row.implementation)

    return program, (given, *operands)


def _rows(row: Row) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    m, k, _ = SHAPES[row.shape]
    static: dict[str, Any] = {"with_sum": "sum" in row.options, "dtype": row.dtype}

    def program(x: jax.Array) -> Any:
        return quantize_rows(x, **static, implementation=row.implementation)

    return program, (_array(m, k, dtype=jnp.bfloat16),)


def _rotation(row: Row) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    m, k, _ = SHAPES[row.shape]
    block = _sized("block", row, k)

    def program(x: jax.Array) -> jax.Array:
        return hadamard(x, block=block, implementation=row.implementation)

    return program, (_array(m, k, dtype=jnp.bfloat16),)


def _sized(name: str, row: Row, default: int) -> int:
    """The number in an option such as "block 32"."""
    return next((int(option.split()[1]) for option in row.options if option.split()[0] == name), default)


OPS = {
    "scaled_matmul": _matmul,
    "packed_matmul": _matmul,
    "quantize_rows": _rows,
    "hadamard": _rotation,
}
FP8 = jnp.float8_e4m3fn
ROWS = [
    Row("scaled_matmul", "xla", "pixart-1024 attn/qkv", INT8),
    Row("scaled_matmul", "xla", "pixart-1024 attn/qkv", INT8, ("w_zero", "bias")),
    Row("scaled_matmul", "xla", "pixart-1024 mlp/fc2", INT8, ("bias",)),
    Row("scaled_matmul", "xla", "pixart-1024 attn/qkv", INT8, ("group 128",)),
    Row("scaled_matmul", "xla", "pixart-1024 attn/qkv", {**WITHOUT, "sm_90": "QGMMA"}, dtype=FP8),
    Row("packed_matmul", "xla", "pixart-1024 attn/qkv", INT8),
    Row("packed_matmul", "xla", "pixart-1024 attn/qkv", INT8, ("group 128",)),
    Row("quantize_rows", "xla", "pixart-1024 attn/qkv", WITHOUT, ("sum",)),
    Row("quantize_rows", "xla", "pixart-1024 mlp/fc2", WITHOUT),
    Row("hadamard", "xla", "pixart-1024 attn/qkv", WITHOUT, ("block 32",)),
]
