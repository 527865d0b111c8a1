"""A quantized block on an NVIDIA GPU is kernels and attention: nothing of a layer is left around them."""

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from pallas_kernels.devices import Gpu, tracing_for
from tests.tiny import randomized
from viditq_jax.bench.models import quantized
from viditq_jax.models import dit, pixart, stdit
from viditq_jax.net import Net, abstract
from viditq_jax.nn.video import Grid
from viditq_jax.quant.recipe import load_recipe

H100 = Gpu("NVIDIA H100", (9, 0), 132)
BATCH, SIDE, WIDTH, HEADS, TEXT = 2, 8, 256, 4, 16
SIZES = {"input_size": 2 * SIDE, "depth": 1, "width": WIDTH, "heads": HEADS}
TOKENS = BATCH * SIDE**2
OPS = ("quantize_rows", "scaled_matmul")
PRODUCTS = {
    "pixart": 6,
    "dit": 4,
    "stdit": 8,
}  # of tokens with weights in a block; the prompt's keys and values are made before


def block(model: str, recipe: str) -> tuple[Net, Any]:
    """The shapes of a net under the recipe; and what runs its first block on tokens."""
    tokens = jnp.ones((BATCH, SIDE**2, WIDTH), jnp.bfloat16)
    if model == "pixart":
        config = pixart.Config(**SIZES, caption_channels=64, text_length=TEXT)
        net = randomized(abstract(pixart.build, config), 0)
        kv = 2 * (jnp.ones((BATCH, TEXT, HEADS, WIDTH // HEADS), jnp.bfloat16),)
        rest = (jnp.ones((BATCH, 6, WIDTH), jnp.bfloat16), kv, None, SIDE)
    elif model == "stdit":
        config = stdit.Config(**SIZES, caption_channels=64, text_length=TEXT)
        net = randomized(abstract(stdit.build, config), 0)
        kv = 2 * (jnp.ones((BATCH, TEXT, HEADS, WIDTH // HEADS), jnp.bfloat16),)
        rest = (jnp.ones((BATCH, 6, WIDTH), jnp.bfloat16), kv, None, Grid(4, 4, SIDE**2 // 16))
    else:
        net = randomized(abstract(dit.build, dit.Config(**SIZES)), 0)
        rest = (jnp.ones((BATCH, WIDTH), jnp.bfloat16),)
    net = jax.eval_shape(lambda net: quantized(net, load_recipe(recipe)), net.astype(jnp.bfloat16))
    return net, lambda net: nnx.merge(net.graphdef, net.params).blocks[0](tokens, *rest)


def equations(jaxpr: Any) -> Iterator[tuple[str, Any]]:
    """Every equation of a program with its name; of a kernel the op, and nothing that is in it."""
    for equation in jaxpr.eqns:
        inner = [part for value in equation.params.values() for part in jaxprs(value)]
        name = kernel(equation, inner)
        yield name or equation.primitive.name, equation
        if name is None:
            for part in inner:
                yield from equations(part)


def jaxprs(value: Any) -> list[Any]:
    """Programs among the parameters of an equation."""
    values = value if isinstance(value, tuple | list) else (value,)
    found = [getattr(each, "jaxpr", each) for each in values]
    return [each for each in found if hasattr(each, "eqns")]


def kernel(equation: Any, inner: list[Any]) -> str | None:
    """The op whose kernel this is, or wraps."""
    if equation.primitive.name == "custom_vmap_call":
        (wrapped,) = inner
        return next((name for name, _ in equations(wrapped) if name in OPS), None)
    name = str(equation.params.get("name", ""))
    return next((op for op in OPS if op in name), None) if equation.primitive.name != "jit" else None


@pytest.fixture(autouse=True)
def _cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX asks the library for its version while it traces; there is none here."""
    jax_calls_cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(jax_calls_cudnn, "check_cudnn_version", lambda: 91000)


@functools.cache
def traced(model: str, recipe: str) -> list[tuple[str, Any]]:
    """Of a block, as it is traced for the GPU."""
    net, run = block(model, recipe)
    with tracing_for(H100):
        return list(equations(jax.make_jaxpr(run)(net).jaxpr))


@pytest.mark.parametrize(
    ("model", "recipe"), [("pixart", "w8a8"), ("dit", "w8a8"), ("stdit", "w8a8"), ("pixart", "w4a8")]
)
def test_a_block_is_a_pass_and_a_product_a_layer_and_attention(model: str, recipe: str) -> None:
    """The product of packed weights is that of int8, after they are unpacked."""
    program = traced(model, recipe)
    names = Counter(name for name, _ in program)
    layers = PRODUCTS[model]
    attention = {"pixart": 2, "dit": 1, "stdit": 3}[model]
    conditioning = {"pixart": 0, "dit": 1, "stdit": 0}[
        model
    ]  # DiT makes the modulation in its block, in floats
    assert (names["quantize_rows"], names["scaled_matmul"]) == (layers, layers)
    assert names["dot_product_attention_fwd_wrapper"] == attention  # of cuDNN
    assert names["dot_general"] == conditioning
    assert names["tanh"] == 0  # GELU
    assert names["rsqrt"] == 0  # layer norm
    for name, equation in program:
        if name in OPS:
            continue
        for value in equation.outvars:
            shape, dtype = value.aval.shape, value.aval.dtype
            if dtype == jnp.int32:
                assert len(shape) < 2 or 1 in shape[-2:], f"{name} leaves integers {shape} in memory"
            if name == "dot_general":
                assert all(operand.aval.dtype != jnp.int8 for operand in equation.invars)
            rows = len(shape) > 1 and TOKENS in (shape[0], shape[0] * shape[1])
            if rows and name in ("add", "mul", "sub", "div"):
                assert shape[-1] not in (WIDTH, 3 * WIDTH, 4 * WIDTH), f"{name} of tokens {shape}"


def test_no_weight_is_dequantized() -> None:
    for recipe in ("w8a8", "w4a8"):
        net, _ = block("pixart", recipe)
        shapes = {weight.shape for path, weight in net.weights().items() if path.startswith("blocks/")}
        assert (4 * WIDTH, WIDTH) in shapes
        for name, equation in traced("pixart", recipe):
            for value in equation.outvars:
                floating = jnp.issubdtype(value.aval.dtype, jnp.floating)
                assert not (floating and value.aval.shape in shapes), f"{name} makes {value.aval}"
