"""Integer products on x86-64 with AVX512-VNNI: machine code made at first use, which XLA calls.

XLA:CPU of jax 0.10 does not use these instructions. `_ir.py` is how LLVM IR is written here; `_panel.py` and
`_tile.py` compute columns of a product; `_call.py` is what XLA calls, and shares them among its threads.
llvmlite compiles that once a process, in 0.2 s for each kind of codes.

What XLA cannot do with a custom call: `jax.export` refuses it for "cpu", so export under
`devices.tracing_for(devices.Portable())`; and over a mesh of CPUs `jit` gathers its operands, so give each
device its rows by `jax.shard_map`.
"""

import functools
import importlib.util
import platform
import sys
import threading

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int8, Int32, UInt8

from pallas_kernels import devices

CODES = 4  # that an instruction sums in one lane
MOST_IN_A_GROUP = 16448  # codes less zero points: their sum has 22 bits
_one_at_a_time = threading.Lock()
_FEATURES = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")


def wrong_machine() -> str | None:
    """Why these products do not run on the default device."""
    if devices.portable():
        return "it is known to this process alone, and the program is for any"
    if not devices.for_cpu():
        return "it is for CPUs, and the default device is none"
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"it is written for Linux on x86_64, and this is {sys.platform} on {platform.machine()}"
    if importlib.util.find_spec("llvmlite") is None:
        return "it is compiled by llvmlite, which is not installed; pip install llvmlite"
    if lacking := _lacking():
        return f"it needs a CPU with AVX512-VNNI, and this one lacks {', '.join(lacking)}"
    return None


@functools.cache
def _lacking() -> list[str]:
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    return [name for name in _FEATURES if not features.get(name, False)]


def misfit(x_shape: tuple[int, ...], groups: int, n: int) -> str | None:
    """Why they are none for a product of these sizes."""
    m, k = x_shape
    if 0 in (m, k, n):
        return f"it computes no empty product, got m={m}, k={k}, n={n}"
    if k // groups % CODES or k // groups > MOST_IN_A_GROUP:
        return f"it needs groups of a multiple of {CODES} codes, {MOST_IN_A_GROUP} at most, got {k // groups}"
    return None


@functools.cache
def functions(*, packed: bool) -> dict[str, int]:
    """The addresses of the machine code: `call` of `_call.py`, `columns` of `_tile.py`."""
    from llvmlite import binding

    from pallas_kernels.x86 import _call

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    cpu, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    machine = binding.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=3)
    module = binding.parse_assembly(str(_call.module(packed=packed)))
    module.verify()
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    found = {name: engine.get_function_address(name) for name in ("call", "columns")}
    engine.detach()  # the code outlives Python: a thread of XLA may look at it last
    return found


def _target(packed: bool) -> str:
    """The name under which XLA knows the custom call."""
    with _one_at_a_time:  # threads may trace programs side by side, and a name is registered once
        return _registered(packed)


@functools.cache
def _registered(packed: bool) -> str:
    name = "pallas_kernels_x86_int4" if packed else "pallas_kernels_x86_int8"
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(functions(packed=packed)["call"]), platform="cpu")
    return name


def product(
    x: Int8[Array, "m k"],
    w: Int8[Array, "n k"] | UInt8[Array, "n half"],
    w_scale: Float32[Array, "#n groups"],
    *,
    x_zero: Int8[Array, "#m 1"] | None = None,
    w_zero: Int8[Array, "#n groups"] | None = None,
    x_sum: Int32[Array, "m groups"] | None = None,
) -> Float32[Array, "m n"]:
    """float32(acc[0]) * w_scale[:, 0] + float32(acc[1]) * w_scale[:, 1] + ..., as `scaled_matmul` says.

    w: int8, or two 4-bit codes a byte, as `pallas_kernels.packing.pack` stores them.
    x_sum: sums of the codes of x over each group, which int8 codes with a w_zero need.
    """
    (m, k), n, groups, packed = x.shape, w.shape[0], w_scale.shape[1], w.dtype == jnp.uint8
    zeros = jnp.zeros((1, 1), jnp.int32) if w_zero is None else w_zero.astype(jnp.int32)
    z = jnp.full((m,), 128, jnp.int32)
    z = z if x_zero is None else z + x_zero.astype(jnp.int32)[:, 0]
    operands = [
        jax.lax.bitcast_convert_type(x, jnp.uint8)
        ^ jnp.uint8(128),  # code + 128; XLA fuses it with what made x
        w,
        jnp.broadcast_to(w_scale, (n, groups)).T,
        z << 23 | z,  # z * 128 and z, of 16 bits each
        jnp.broadcast_to(zeros, (n, groups)).T,
    ]
    if not packed:
        total = jnp.zeros((m, groups), jnp.int32)  # what it is does not matter without zero points
        total = total if x_sum is None else x_sum + 128 * (k // groups)
        operands.append((total >> 7) << 16 | total & 127)
    shape = jax.ShapeDtypeStruct((m, n), jnp.float32)
    return jax.ffi.ffi_call(_target(packed), shape, vmap_method="sequential")(*operands)
