"""What is compiled for a GPU and looked at, as data: a row a kernel and shape. A new kernel is a new row."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.attention import attention
from pallas_kernels.hadamard import hadamard
from pallas_kernels.layers import LAYERS
from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.scaled_matmul import scaled_matmul

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a function, and the shapes of what it takes

INT8 = {"sm_80": "IMMA", "sm_89": "IMMA", "sm_90": "IGMMA"}
WITHOUT = dict.fromkeys(INT8, "")
FP8 = jnp.float8_e4m3fn
LIBRARIES = {"cudnn"}  # implementations by a library that is not among the wheels: nothing compiles them here
# Implementations whose machine code `make check-triton` reads, and of which targets.
ASSEMBLED = {"triton": ("sm_80", "sm_89")}


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One op at one shape through one implementation.

    layer: one of `pallas_kernels.layers`, whose tokens, inputs and outputs it has.
    options: optional operands by name, made with the shapes that the contract gives them; and "gelu", "sum",
        "asymmetric", "group 128", "block 32", "qk_bits 8".
    instruction: per target, the tensor-core instruction that must be in it; "" where there is no product, or
        one by a library.
    dtype: of the codes.
    loop_spills: the most stores to and loads from local memory that may stand in its loop over k; a reason
        stands beside it.
    """

    op: str
    implementation: str
    layer: str
    instruction: dict[str, str]
    options: tuple[str, ...] = ()
    dtype: Any = jnp.int8
    loop_spills: int = 0

    @property
    def name(self) -> str:
        """Unique among the rows."""
        codes = () if self.dtype == jnp.int8 else (jnp.dtype(self.dtype).name,)
        return ", ".join([f"{self.op}/{self.implementation} {self.layer}", *codes, *self.options])

    def program(self) -> Program:
        """What to compile."""
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

    def given(self, optional: dict[str, Any]) -> dict[str, Any]:
        """Of the optional operands those that the options name."""
        return {name: operand for name, operand in optional.items() if name in self.options}

    def number(self, name: str) -> int | None:
        """The number in an option such as "block 32"."""
        return next((int(option.split()[1]) for option in self.options if option.split()[0] == name), None)

    @property
    def activation(self) -> str | None:
        """As the ops call it."""
        return "gelu" if "gelu" in self.options else None


def _array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _matmul(row: Row) -> Program:
    m, k, n, *_ = LAYERS[row.layer]
    groups = k // (row.number("group") or k)
    packed = row.op == "packed_matmul"
    weight = _array(n, k // 2, dtype=jnp.uint8) if packed else _array(n, k, dtype=row.dtype)
    given = row.given(
        {
            "x_zero": _array(m, 1, dtype=jnp.int8),
            "w_zero": _array(n, groups, dtype=jnp.int8),
            "x_sum": _array(m, groups, dtype=jnp.int32),
            "w_sum": _array(n, groups, dtype=jnp.int32),
            "bias": _array(n, dtype=jnp.bfloat16),
            "residual": _array(m, n, dtype=jnp.bfloat16),
            "gate": _array(2, n, dtype=jnp.bfloat16),
        }
    )
    static: dict[str, Any] = {"activation": row.activation} if row.activation else {}
    op: Any = packed_matmul if packed else scaled_matmul

    def program(given: dict[str, jax.Array], *operands: jax.Array) -> Any:
        return op(*operands, **given, **static, implementation=row.implementation)

    return program, (given, _array(m, k, dtype=row.dtype), weight, _array(m, 1), _array(n, groups))


def _rows(row: Row) -> Program:
    m, k, *_ = LAYERS[row.layer]
    modulation = _array(2, k, dtype=jnp.bfloat16)
    given = row.given(
        {
            "modulation": (modulation, modulation),
            "balance": _array(k),
            "signs": _array(-(-k // 8), dtype=jnp.uint8),
            "scale": _array(1, 1),
        }
    )
    static: dict[str, Any] = {
        "activation": row.activation,
        "block": row.number("block"),
        "symmetric": "asymmetric" not in row.options,
        "with_sum": "sum" in row.options,
        "dtype": row.dtype,
    }

    def program(given: dict[str, Any], x: jax.Array) -> Any:
        return quantize_rows(x, **given, **static, implementation=row.implementation)

    return program, (given, _array(m, k, dtype=jnp.bfloat16))


def _rotation(row: Row) -> Program:
    m, k, *_ = LAYERS[row.layer]

    def program(x: jax.Array) -> jax.Array:
        return hadamard(x, block=row.number("block") or k, implementation=row.implementation)

    return program, (_array(m, k, dtype=jnp.bfloat16),)


def _attention(row: Row) -> Program:
    m, k, *_ = LAYERS[row.layer]
    heads = _array(2, m // 2, 16, k // 16, dtype=jnp.bfloat16)

    def program(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, qk_bits=row.number("qk_bits"), implementation=row.implementation)

    return program, (heads, heads, heads)


OPS: dict[str, Callable[[Row], Program]] = {
    "scaled_matmul": _matmul,
    "packed_matmul": _matmul,
    "quantize_rows": _rows,
    "hadamard": _rotation,
    "attention": _attention,
}
_ROTATED = ("balance", "signs", "block 32", "sum")  # what the recipe w8a8 does to an input
_WEIGHTS = ("w_zero", "x_sum", "bias")  # asymmetric weights, as the packaged recipes have them
_BOTH = ("x_zero", "w_sum", *_WEIGHTS)
_PACKED = ("w_zero", "bias")
_GATED = ("residual", "gate")
ROWS = [
    Row("scaled_matmul", "xla", "pixart-sigma-1024 attn/qkv", INT8),
    Row("scaled_matmul", "xla", "pixart-sigma-1024 attn/qkv", INT8, ("w_zero", "x_sum", "bias")),
    Row("scaled_matmul", "xla", "pixart-sigma-1024 mlp/fc2", INT8, ("bias",)),
    Row("scaled_matmul", "xla", "pixart-sigma-1024 attn/qkv", INT8, ("group 128",)),
    Row("scaled_matmul", "xla", "pixart-sigma-1024 attn/qkv", {**WITHOUT, "sm_90": "QGMMA"}, dtype=FP8),
    Row("packed_matmul", "xla", "pixart-sigma-1024 attn/qkv", INT8),
    Row("packed_matmul", "xla", "pixart-sigma-1024 attn/qkv", INT8, ("group 128",)),
    Row("quantize_rows", "xla", "pixart-sigma-1024 attn/qkv", WITHOUT, ("sum",)),
    Row("quantize_rows", "xla", "pixart-sigma-1024 attn/qkv", WITHOUT, ("modulation", "sum")),
    Row("quantize_rows", "xla", "pixart-sigma-1024 mlp/fc2", WITHOUT, ("gelu", "sum")),
    Row("hadamard", "xla", "pixart-sigma-1024 attn/qkv", WITHOUT, ("block 32",)),
    Row("attention", "xla", "pixart-sigma-512 attn/qkv", WITHOUT),
    Row("attention", "xla", "pixart-sigma-512 attn/qkv", WITHOUT, ("qk_bits 8",)),
    *(
        Row("scaled_matmul", "mosaic_gpu", layer, {"sm_90": "IGMMA"}, options)
        for layer, options in (
            ("pixart-sigma-1024 attn/qkv", ()),
            ("pixart-sigma-1024 attn/qkv", _WEIGHTS),
            ("pixart-sigma-1024 attn/qkv", _BOTH),
            ("pixart-sigma-1024 attn/proj", ("bias", *_GATED)),
            ("pixart-sigma-1024 attn/proj", (*_WEIGHTS, *_GATED)),
            ("pixart-sigma-1024 mlp/fc1", ("bias", "gelu")),
            ("pixart-sigma-1024 mlp/fc1", (*_WEIGHTS, "gelu")),
            ("pixart-sigma-1024 mlp/fc2", ("bias",)),
            ("pixart-sigma-1024 mlp/fc2", ("bias", *_GATED)),
            ("pixart-sigma-1024 mlp/fc2", (*_WEIGHTS, *_GATED)),
            ("pixart-sigma-512 attn/qkv", _WEIGHTS),
            ("pixart-sigma-512 cross_attn/proj", (*_WEIGHTS, "residual")),
            ("flux-like 1024 double/qkv", _WEIGHTS),
            ("few rows pixart t_block", _WEIGHTS),
            ("pixart-sigma-1024 attn/qkv", (*_WEIGHTS, "group 128")),
            ("pixart-sigma-1024 attn/proj", (*_WEIGHTS, *_GATED, "group 64")),
            ("pixart-sigma-1024 attn/qkv", (*_WEIGHTS, "group 32")),
            ("pixart-sigma-1024 mlp/fc1", (*_WEIGHTS, "gelu", "group 128")),
            ("pixart-sigma-1024 mlp/fc2", (*_WEIGHTS, *_GATED, "group 128")),
        )
    ),
    Row(  # with clusters of one block, nothing spills here
        "scaled_matmul",
        "mosaic_gpu",
        "flux-like 1024 single/linear2",
        {"sm_90": "IGMMA"},
        (*_WEIGHTS, *_GATED),
        loop_spills=3,
    ),
    Row(  # each step ends a group, whose sums, zero points and totals do not fit into registers
        "scaled_matmul",
        "mosaic_gpu",
        "pixart-sigma-1024 attn/qkv",
        {"sm_90": "IGMMA"},
        (*_BOTH, "group 32"),
        loop_spills=12,
    ),
    *(
        Row("packed_matmul", "mosaic_gpu", layer, {"sm_90": "IGMMA"}, options)
        for layer, options in (
            ("pixart-sigma-1024 attn/qkv", _PACKED),
            ("pixart-sigma-1024 mlp/fc1", (*_PACKED, "gelu")),
            ("pixart-sigma-1024 mlp/fc2", (*_PACKED, *_GATED)),
            ("pixart-sigma-1024 attn/qkv", (*_PACKED, "group 128")),
            ("pixart-sigma-1024 attn/proj", (*_PACKED, *_GATED, "group 64")),
        )
    ),
    *(
        Row("quantize_rows", "mosaic_gpu", layer, {"sm_90": ""}, options)
        for layer, options in (
            ("pixart-sigma-1024 attn/qkv", ()),
            ("pixart-sigma-1024 attn/qkv", ("scale",)),
            ("pixart-sigma-1024 attn/qkv", ("asymmetric", "sum")),
            ("pixart-sigma-1024 attn/qkv", ("modulation", "sum")),
            ("pixart-sigma-1024 attn/qkv", ("modulation", "balance", "sum")),
            ("pixart-sigma-1024 attn/qkv", ("modulation", *_ROTATED)),
            ("pixart-sigma-1024 attn/proj", _ROTATED),
            ("pixart-sigma-1024 mlp/fc2", ("gelu", "sum")),
            ("pixart-sigma-1024 mlp/fc2", ("gelu", *_ROTATED)),
            ("flux-like 1024 double/qkv", ("modulation", *_ROTATED)),
            ("flux-like 1024 single/linear2", ("gelu", *_ROTATED)),
        )
    ),
    Row("quantize_rows", "mosaic_gpu", "pixart-sigma-1024 attn/qkv", {"sm_90": ""}, dtype=FP8),
    Row("hadamard", "mosaic_gpu", "pixart-sigma-1024 attn/qkv", {"sm_90": ""}, ("block 32",)),
    Row("hadamard", "mosaic_gpu", "pixart-sigma-1024 attn/qkv", {"sm_90": ""}, ("block 128",)),
]
