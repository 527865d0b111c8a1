"""Other libraries on the block that `viditq bench` times.

    viditq bench --parts block --rivals benchmarks/rivals.py

torch in bfloat16, plain and compiled, and in int8 (dynamic, a scale a row and a scale an output, through
`torch._int_mm`); qwix's post-training int8 of our own block. All have the same weights and inputs; timed is
tokens in, tokens out, with the keys and values of the prompt made before. What is not installed, or computes
another function, is left out with its reason.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or torch's idle threads take the cores from the others

import jax
import jax.numpy as jnp
import numpy as np

from viditq_jax.bench.block import run_block
from viditq_jax.net import Net

HEADS = 16
OPS = ("einsum",)  # for qwix, what our linear layers are made of: attention stays in floats, as with us
Launch = Callable[[int], Any]


def rivals(net: Net, inputs: Mapping[str, Any]) -> tuple[dict[str, Launch], dict[str, str]]:
    """What to launch by name; and why others are not there."""
    found: dict[str, Launch] = {}
    reasons: dict[str, str] = {}
    expected = np.asarray(
        run_block(net, inputs["tokens"][0], inputs["modulation"], inputs["kv"], height=inputs["height"]),
        np.float32,
    )
    for name, make in MAKERS.items():
        try:
            launch = make(net, inputs)
            result = launch(0)
            result = np.asarray(result.float().cpu() if hasattr(result, "cpu") else result, np.float32)
        except Exception as error:  # a library that is absent, or does not take this model
            reasons[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        off = np.linalg.norm(result - expected) / np.linalg.norm(expected)
        if off > 0.05:  # int8 is off by about 1%
            reasons[name] = f"computes another function: relative L2 {off:.3f}"
        else:
            found[name] = launch
    return found, reasons


def _torch_block(
    net: Net, inputs: Mapping[str, Any], linear: Callable[..., Any], *, compiled: bool
) -> Launch:
    """The block of PixArt in torch. linear(weight, bias) gives the function of a layer."""
    import torch
    from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"

    def tensor(array: jax.Array) -> Any:
        values = torch.from_numpy(np.array(array.astype(jnp.float32)))
        return values.to(device, torch.bfloat16)

    held = {name: variable.get_value() for name, variable in net.variables()}

    def layer(name: str) -> Callable[[Any], Any]:
        weight, bias = (tensor(held[f"blocks/0/{name}/{part}"]) for part in ("weight", "bias"))
        return linear(weight, bias)

    qkv, proj, query, out, fc1, fc2 = map(
        layer, ("attn/qkv", "attn/proj", "cross_attn/q_linear", "cross_attn/proj", "mlp/fc1", "mlp/fc2")
    )
    table = tensor(held["blocks/0/scale_shift_table"]) + tensor(inputs["modulation"])
    shift1, scale1, gate1, shift2, scale2, gate2 = table.chunk(6, dim=1)
    k_text, v_text = (tensor(each).transpose(1, 2) for each in inputs["kv"])

    def heads(x: Any) -> Any:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def attend(q: Any, k: Any, v: Any) -> Any:
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def modulated(x: Any, shift: Any, scale: Any) -> Any:
        return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    def block(x: Any) -> Any:
        q, k, v = map(heads, qkv(modulated(x, shift1, scale1)).chunk(3, dim=-1))
        x = x + gate1 * proj(attend(q, k, v))
        x = x + out(attend(heads(query(x)), k_text, v_text))
        return x + gate2 * fc2(gelu(fc1(modulated(x, shift2, scale2)), approximate="tanh"))

    if compiled:
        block = torch.compile(block)
    tokens = [tensor(each) for each in inputs["tokens"]]

    def launch(i: int) -> Any:
        with torch.inference_mode():
            y = block(tokens[i % len(tokens)])
            if device == "cuda":
                torch.cuda.synchronize()
            return y

    return launch


def _float_linear(weight: Any, bias: Any) -> Callable[[Any], Any]:
    from torch.nn.functional import linear

    return lambda x: linear(x, weight, bias)


def _int8_linear(weight: Any, bias: Any) -> Callable[[Any], Any]:
    """Symmetric int8, a scale for each output channel and each row of the input."""
    import torch

    scale = weight.float().abs().amax(1, keepdim=True) / 127
    codes = (weight.float() / scale).round().to(torch.int8).t()  # [k, n]; `_int_mm` takes this as it is
    scale = scale.t()

    def apply(x: Any) -> Any:
        rows = x.flatten(0, -2).float()
        x_scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        y = torch._int_mm((rows / x_scale).round().to(torch.int8), codes)
        return (y.float() * x_scale * scale + bias.float()).to(x.dtype).unflatten(0, x.shape[:-1])

    return apply


def _qwix(net: Net, inputs: Mapping[str, Any]) -> Launch:
    """qwix's post-training quantization of our block: int8 weights and inputs of its linear layers, dynamic.

    qwix puts an object of its own into the place of each parameter and lacks what we read parameters by.
    """
    import qwix
    from flax import nnx

    held = sys.modules[qwix.PtqProvider.__module__].WithAux
    held.get_value = lambda self: self
    module = nnx.merge(net.graphdef, net.params).blocks[0]
    rest = (inputs["modulation"], inputs["kv"], None, inputs["height"])
    rules = [qwix.QuantizationRule(module_path=".*", weight_qtype="int8", act_qtype="int8", op_names=OPS)]
    module = qwix.quantize_model(module, qwix.PtqProvider(rules), inputs["tokens"][0], *rest)
    graphdef, params = nnx.split(module)

    @jax.jit
    def run(params: Any, x: jax.Array, modulation: jax.Array, kv: Any) -> jax.Array:
        return nnx.merge(graphdef, params)(x, modulation, kv, None, inputs["height"])

    tokens = inputs["tokens"]
    text = str(jax.make_jaxpr(run)(params, tokens[0], inputs["modulation"], inputs["kv"]))
    if "i8[" not in text:
        raise RuntimeError("qwix left every layer in floats: it found no product that it knows in our layers")
    return lambda i: run(params, tokens[i % len(tokens)], inputs["modulation"], inputs["kv"])


MAKERS: dict[str, Callable[[Net, Mapping[str, Any]], Launch]] = {
    "torch bfloat16": lambda net, inputs: _torch_block(net, inputs, _float_linear, compiled=False),
    "torch.compile bfloat16": lambda net, inputs: _torch_block(net, inputs, _float_linear, compiled=True),
    "torch int8": lambda net, inputs: _torch_block(net, inputs, _int8_linear, compiled=False),
    "torch.compile int8": lambda net, inputs: _torch_block(net, inputs, _int8_linear, compiled=True),
    "qwix int8": _qwix,
}
