"""quantize_rows on NVIDIA GPUs: each row read once, written once, and kept in registers between.

    bytes of a bfloat16 row of k channels: 2 k in, k out; at the 3.0 TB/s of an H100 that is
    9.5 us for [8192, 1152] and 38 us for [8192, 4608]; nothing here needs the tensor cores

A warp holds a row (two or four warps share a long one) as a list of pieces: of each, a lane has `vector`
neighbouring channels. Sums and extremes of a row are those of its pieces, then shuffles. What belongs to a
channel and not to a row (1 + scale and shift, balance, signs) XLA prepares, in float32: it fuses with what
makes the modulation. The Hadamard transform is butterflies in registers (`hadamard/_registers.py`), for
blocks of a power of 2; before other blocks, XLA does the steps up to them and the kernel makes the codes.
The kernel's body is in `_mosaic_gpu_body.py`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels import tuning
from pallas_kernels.compat import COMPILED, LEAST_CAPABILITY, Target
from pallas_kernels.devices import NO_GPU, default_gpu
from pallas_kernels.hadamard import _registers as registers
from pallas_kernels.quantize_rows import xla
from pallas_kernels.quantize_rows._channels import of_channels
from pallas_kernels.quantize_rows._mosaic_gpu_body import Codes, Steps, quantize_block
from pallas_kernels.quantize_rows.reference import Result, prepared
from pallas_kernels.rows import CANDIDATES, Tiles, fitting, ranked


def unsupported(x: jax.Array, *, dtype: DTypeLike, **options: Any) -> str | None:
    """Why the kernel cannot run on the default device, or not with these shapes."""
    gpu = default_gpu()
    if gpu is None:
        return NO_GPU
    least = max(LEAST_CAPABILITY, (8, 9) if dtype == jnp.float8_e4m3fn else (0, 0))
    if gpu.capability < least:
        return f"{gpu.name} has compute capability {gpu.capability}, and {least} is needed"
    if not fitting_tiles(x, **options):
        return (
            f"rows of {x.shape[1]} channels do not fill warps; multiples of 128 channels up to 18432 do, and"
            f" multiples of 32 up to 4608 where a multiple of 4 rows have one modulation; {len(x)} were given"
        )
    return None


def fitting_tiles(
    x: jax.Array | jax.ShapeDtypeStruct,
    *,
    modulation: tuple[Any, Any] | None,
    block: int | None,
    regular: bool,
    **_: Any,
) -> list[Tiles]:
    """All for operands of these shapes, the best first; if there are any, those with which butterflies can do
    the rotation.
    """
    m, k = x.shape
    choices = fitting(m // (1 if modulation is None else modulation[0].shape[0]), k)
    rotating = [each for each in choices if block is None or registers.misfit(block, regular, each) is None]
    return ranked(rotating or choices, k)


def candidates(
    x: jax.Array | jax.ShapeDtypeStruct, *, dtype: DTypeLike = jnp.int8, **options: Any
) -> tuning.Choice:
    """The best few tiles, for `tuning`."""
    before = ("modulation", "activation", "balance", "signs")
    facts = {
        "m": x.shape[0],
        "k": x.shape[1],
        "x": x.dtype.name,
        "codes": jnp.dtype(dtype).name,
        "block": options["block"],
        "before": "+".join(name for name in before if options[name] is not None),
    }
    return tuning.Choice(facts, fitting_tiles(x, **options)[:CANDIDATES])


def run(x: jax.Array, *, tiles: Tiles | None = None, **options: Any) -> Result:
    """See the contract."""
    chosen = tuning.pick("quantize_rows", "mosaic_gpu", candidates(x, **options), tiles)
    return kernel(x, tiles=chosen, **options)


def kernel(
    x: jax.Array,
    *,
    modulation: tuple[jax.Array, jax.Array] | None,
    eps: float,
    activation: str | None,
    balance: jax.Array | None,
    signs: jax.Array | None,
    block: int | None,
    regular: bool,
    bits: int,
    symmetric: bool,
    dtype: DTypeLike,
    scale: jax.Array | None,
    zero: jax.Array | None,
    with_sum: bool,
    tiles: Tiles,
    target: Target = COMPILED,
) -> Result:
    """The contract with given tiles, for a GPU or interpreted; asks no device for anything."""
    if block is not None and registers.misfit(block, regular, tiles) is not None:
        x = prepared(x, modulation=modulation, eps=eps, activation=activation, balance=balance)
        x = xla.rotated(x, signs, block, regular)
        modulation = activation = balance = signs = block = None
    (m, k), static = x.shape, scale is not None
    operands = {"x": x, **of_channels(modulation, activation, balance, signs, k)}
    operands |= {name: each.ravel() for name, each in (("scale", scale), ("zero", zero)) if each is not None}
    results = {
        "codes": jax.ShapeDtypeStruct((m, k), dtype),
        "scales": jax.ShapeDtypeStruct((m,), jnp.float32),
    }
    if not symmetric and not static:
        results["zeros"] = jax.ShapeDtypeStruct((m,), jnp.int8)
    if with_sum:
        results["sums"] = jax.ShapeDtypeStruct((m,), jnp.int32)
    groups = 1 if modulation is None else len(modulation[0])
    body = functools.partial(
        quantize_block,
        names=(*operands, *results),
        steps=Steps(m // groups, eps, activation is not None, block, regular),
        codes=Codes(bits, symmetric, dtype),
        tiles=tiles,
        target=target,
    )
    made = target.kernel(
        body,
        kernel_name="quantize_rows",
        out_type=tuple(results.values()),
        grid=(m // tiles.rows,),
        grid_names=("block",),
        approx_math=True,  # of exp2 and rsqrt: off by 2 units of the last place
        auto_barriers=False,  # nothing is read that a kernel writes
    )(*operands.values())
    named = {name: each[:, None] for name, each in zip(results, made, strict=True) if name != "codes"}
    return made[0], named["scales"], zero if static else named.get("zeros"), named.get("sums")
