"""Ops to time, on random numbers: what each computes, and the float computation that it stands for.

Operands are drawn in float32 and then encoded as the op wants them, so that the op and the floats compute the
same thing. Weights have zero points, as the packaged recipes give them. Weights are drawn anew for each call
of a pool, like inputs: in a model, no layer finds its weights in a cache.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from pallas_kernels.hadamard import hadamard, matrix
from pallas_kernels.layers import MODELS, QUICK, Layer
from pallas_kernels.packed_matmul import packed_matmul
from pallas_kernels.packing import pack
from pallas_kernels.quantize_rows import quantize_rows
from pallas_kernels.scaled_matmul import scaled_matmul

OPS = ("quantize_rows", "hadamard", "scaled_matmul", "packed_matmul")
_BLOCK = 32  # of the packaged recipe w8a8
_WIDEST = 4608  # rows that are rotated whole: the dense product that this is compared with grows as k squared
_QUICKEST = 1152

Operands = dict[str, jax.Array]
Compute = Callable[[Operands], Any]


@runtime_checkable
class Case(Protocol):
    """One op on one shape."""

    @property
    def name(self) -> str:
        """The layer, and what of it the op computes."""
        ...

    @property
    def op(self) -> str:
        """The op's folder."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """The shape, for the record."""
        ...

    @property
    def flop(self) -> int:
        """Of the matrix product; 0 for what only passes over the rows."""
        ...

    def draw(self, key: jax.Array) -> Operands:
        """Weights and inputs in float32."""
        ...

    def encode(self, drawn: Operands) -> Operands:
        """The same as the op takes them."""
        ...

    @property
    def function(self) -> Callable[..., Any]:
        """The op's public function."""
        ...

    def arguments(self, encoded: Operands) -> tuple[list[jax.Array], dict[str, Any]]:
        """What it is called with, but for the implementation."""
        ...

    def plain(self, drawn: Operands) -> jax.Array:
        """The float computation in the dtype of the operands, with sums in float32 and one rounding."""
        ...


def run(case: Case, implementation: str | None) -> Compute:
    """The op, of encoded operands, by one implementation."""

    def compute(encoded: Operands) -> Any:
        args, options = case.arguments(encoded)
        return case.function(*args, **options, implementation=implementation)

    return compute


def cases(ops: Sequence[str] = OPS, *, quick: bool = False, most_rows: int | None = None) -> list[Case]:
    """What to time: model after model, and of each the ops in the order asked for.

    quick: the layers of one model. most_rows: larger batches are cut, for a device on which they take long.
    """
    found: dict[Any, Case] = {}  # equal shapes are timed once, under the first name
    for layers in MODELS.values():
        chosen = {name: layer for name, layer in layers.items() if name in QUICK or not quick}
        each = []
        for name, layer in chosen.items():
            layer = layer._replace(rows=min(layer.rows, most_rows or layer.rows))
            each += _of_layer(name, layer, _QUICKEST if quick else _WIDEST)
        for case in (case for op in ops for case in each if case.op == op):
            found.setdefault((case.op, *case.facts.items()), case)
    return list(found.values())


def _of_layer(name: str, layer: Layer, widest: int) -> list[Case]:
    products: list[Case] = [Product(name, layer, bits) for bits in (8, 4)]
    if layer.rows == 1:
        return products
    forms = [layer.form]
    forms += ["rotated"] if layer.form == "modulated" else []
    forms += ["gelu"] if name.endswith("fc2") else []
    blocks = (_BLOCK, layer.k) if layer.k <= widest else (_BLOCK,)
    return [
        *(Rows(f"{name} input, {form}", layer.rows, layer.k, form) for form in forms),
        *(Rotation(f"{name} input, block {block}", layer.rows, layer.k, block) for block in blocks),
        *products,
    ]


@dataclasses.dataclass(frozen=True)
class Product:
    """scaled_matmul, or with 4 bits packed_matmul, with the epilogue of the layer."""

    name: str
    layer: Layer
    bits: int = 8

    @property
    def op(self) -> str:
        return "scaled_matmul" if self.bits == 8 else "packed_matmul"

    @property
    def facts(self) -> dict[str, Any]:
        rows, k, n, _, epilogue = self.layer
        return {"m": rows, "k": k, "n": n, "epilogue": epilogue}

    @property
    def flop(self) -> int:
        return 2 * self.layer.rows * self.layer.k * self.layer.n

    def draw(self, key: jax.Array) -> Operands:
        rows, k, n, _, epilogue = self.layer
        keys = jax.random.split(key, 5)
        drawn = {"x": jax.random.normal(keys[0], (rows, k)), "w": jax.random.normal(keys[1], (n, k)) / k**0.5}
        drawn["bias"] = jax.random.normal(keys[2], (n,))
        if epilogue in ("gate", "residual"):
            drawn["residual"] = jax.random.normal(keys[3], (rows, n))
        if epilogue == "gate":
            drawn["gate"] = jax.random.normal(keys[4], (_samples(rows), n))
        return drawn

    def encode(self, drawn: Operands) -> Operands:
        """Weights with a scale and a zero point a channel; inputs with a scale a row, and a sum if used."""
        w, w_scale, w_zero, _ = quantize_rows(drawn["w"], bits=self.bits, symmetric=False)
        x, x_scale, _, x_sum = quantize_rows(drawn["x"], with_sum=self.bits == 8)
        others = {name: value.astype(jnp.bfloat16) for name, value in drawn.items() if name not in ("x", "w")}
        sums = {} if x_sum is None else {"x_sum": x_sum}
        zeros = {} if w_zero is None else {"w_zero": w_zero}
        codes = {"x": x, "w": w if self.bits == 8 else pack(w)}
        return {**codes, "x_scale": x_scale, "w_scale": w_scale, **zeros, **sums, **others}

    @property
    def function(self) -> Callable[..., Any]:
        return scaled_matmul if self.bits == 8 else packed_matmul

    def arguments(self, encoded: Operands) -> tuple[list[jax.Array], dict[str, Any]]:
        """With bfloat16 out, the default, as in a bfloat16 model."""
        options: dict[str, Any] = dict(encoded)
        args = [options.pop(name) for name in ("x", "w", "x_scale", "w_scale")]
        if self.layer.epilogue == "gelu":
            options["activation"] = "gelu"
        return args, options

    def plain(self, drawn: Operands) -> jax.Array:
        y = _dot(drawn["x"], drawn["w"].T) + drawn["bias"].astype(jnp.float32)
        if self.layer.epilogue == "gelu":
            y = jax.nn.gelu(y, approximate=True)
        if "gate" in drawn:
            y = y * _each_row(drawn["gate"], len(y))
        y = y + drawn["residual"].astype(jnp.float32) if "residual" in drawn else y
        return y.astype(drawn["x"].dtype)


@dataclasses.dataclass(frozen=True)
class Rows:
    """quantize_rows with what comes before it. Its float side writes floats instead of codes.

    form: "plain"; "modulated", layer norm, shift and scale; "rotated", that with balance and Hadamard blocks,
    as in the recipe w8a8; "gelu". Plain rows need nothing in floats: their float side negates, one pass.
    """

    name: str
    rows: int
    k: int
    form: str
    op = "quantize_rows"
    flop = 0

    @property
    def function(self) -> Callable[..., Any]:
        return quantize_rows

    @property
    def facts(self) -> dict[str, Any]:
        return {"m": self.rows, "k": self.k, "form": self.form}

    def draw(self, key: jax.Array) -> Operands:
        keys = jax.random.split(key, 3)
        drawn = {"x": jax.random.normal(keys[0], (self.rows, self.k))}
        if self.form in ("modulated", "rotated"):
            for name, each in zip(("shift", "scale"), keys[1:], strict=True):
                drawn[name] = jax.random.normal(each, (_samples(self.rows), self.k))
        return drawn

    def encode(self, drawn: Operands) -> Operands:
        """In bfloat16, as a bfloat16 model has them; where rows are rotated, with a balance and signs."""
        operands = {name: value.astype(jnp.bfloat16) for name, value in drawn.items()}
        if self.form == "rotated":
            coins = jax.random.bernoulli(jax.random.key(1), shape=(self.k,))
            balance = jax.random.uniform(jax.random.key(2), (self.k,), minval=0.5, maxval=2.0)
            operands |= {"balance": balance, "signs": jnp.packbits(coins)}
        return operands

    def arguments(self, encoded: Operands) -> tuple[list[jax.Array], dict[str, Any]]:
        """With sums, which weights with zero points need."""
        options: dict[str, Any] = {**encoded, "with_sum": True}
        x = options.pop("x")
        if "shift" in options:
            options["modulation"] = (options.pop("shift"), options.pop("scale"))
        if self.form == "rotated":
            options["block"] = _BLOCK
        if self.form == "gelu":
            options["activation"] = "gelu"
        return [x], options

    def plain(self, drawn: Operands) -> jax.Array:
        x = drawn["x"].astype(jnp.float32)
        if "shift" in drawn:
            shift, scale = (_each_row(drawn[name], len(x)) for name in ("shift", "scale"))
            centered = x - x.mean(-1, keepdims=True)
            x = centered * jax.lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + 1e-6)
            x = x * (1 + scale) + shift
        else:
            x = jax.nn.gelu(x, approximate=True) if self.form == "gelu" else -x
        return x.astype(drawn["x"].dtype)


@dataclasses.dataclass(frozen=True)
class Rotation:
    """hadamard; its float side is the product with the dense matrix of a block."""

    name: str
    rows: int
    k: int
    block: int
    op = "hadamard"
    flop = 0  # the fewest additions are no matter beside the bytes

    @property
    def function(self) -> Callable[..., Any]:
        return hadamard

    @property
    def facts(self) -> dict[str, Any]:
        return {"m": self.rows, "k": self.k, "block": self.block}

    def draw(self, key: jax.Array) -> Operands:
        dense = jnp.asarray(matrix(self.block), jnp.float32) / self.block**0.5
        return {"x": jax.random.normal(key, (self.rows, self.k)), "h": dense}

    def encode(self, drawn: Operands) -> Operands:
        """The rows alone, in bfloat16."""
        return {"x": drawn["x"].astype(jnp.bfloat16)}

    def arguments(self, encoded: Operands) -> tuple[list[jax.Array], dict[str, Any]]:
        """With float32 out, as its contract says."""
        return [encoded["x"]], {"block": self.block}

    def plain(self, drawn: Operands) -> jax.Array:
        x = drawn["x"]
        return _dot(x.reshape(-1, self.block), drawn["h"]).reshape(x.shape).astype(x.dtype)


def _samples(rows: int) -> int:
    """Of a batch, with a modulation and a gate each; as few as guidance makes."""
    return 2 - rows % 2


def _each_row(vectors: jax.Array, rows: int) -> jax.Array:
    """The vector of the sample that each row is of."""
    return jnp.repeat(vectors.astype(jnp.float32), rows // len(vectors), axis=0)


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(x, w, precision=precision, preferred_element_type=jnp.float32)
