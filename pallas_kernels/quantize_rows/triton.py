"""quantize_rows through jax-triton, on NVIDIA GPUs from Ampere on: the extra `triton`.

    bytes of a bfloat16 row of k channels: 2 k in, k out; at the 1.75 TB/s of an A100 that is
    16 us for [8192, 1152] and 65 us for [8192, 4608]; nothing of this was measured

The kernel, in `triton_kernels/rows.py`, reads a row once and writes its codes once. On Hopper `mosaic_gpu` is
asked first.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels import triton_kernels, tuning
from pallas_kernels.devices import default_gpu
from pallas_kernels.hadamard._registers import misfit as misfit_of_rotation
from pallas_kernels.quantize_rows._channels import of_channels
from pallas_kernels.quantize_rows.reference import FLOAT32_MAX, TINY, Result, limits
from pallas_kernels.triton_kernels import MOST_ELEMENTS, Program, Run, compiled

Shaped = jax.Array | jax.ShapeDtypeStruct
FLOAT8_CAPABILITY = (8, 9)
FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)
HELD, MOST_HELD = 32, 64  # float32 numbers of a thread: with more than the first, few warps fit
HELD_OF_ROTATIONS = 16  # butterflies hold them twice
MOST = 16384  # of a block: with more, those of 16 warps spill
CANDIDATES = 8  # tiles that are worth a measurement


class Tiles(NamedTuple):
    """How a block of threads holds rows."""

    rows: int
    warps: int

    def held(self, k: int) -> int:
        """Numbers of a thread."""
        return self.rows * padded(k) // (32 * self.warps)


def padded(k: int) -> int:
    """Channels of a row in registers: a power of 2."""
    return 1 << (k - 1).bit_length()


def kernel() -> Any:
    """It needs Triton to be imported."""
    from pallas_kernels.triton_kernels.rows import quantize

    return quantize


def unsupported(x: jax.Array, *, dtype: DTypeLike, **options: Any) -> str | None:
    """Why the kernel cannot run on the default device, or not with these operands."""
    if (reason := triton_kernels.wrong_device()) is not None:
        return reason
    gpu = default_gpu()
    if dtype == jnp.float8_e4m3fn and gpu is not None and gpu.capability < FLOAT8_CAPABILITY:
        major, minor = gpu.capability
        return f"it makes float8 codes from compute capability 8.9 on, and {gpu.name} has {major}.{minor}"
    return misfit(x, **options)


def misfit(x: Shaped, *, block: int | None, regular: bool, **_: Any) -> str | None:
    """Why the kernel cannot take these rows on any device."""
    m, k = x.shape
    if x.dtype not in FLOATS:
        return f"it takes bfloat16, float16 or float32, not {x.dtype}"
    if m * k == 0 or m * k > MOST_ELEMENTS or not fitting_tiles(m, k, block):
        most = f"up to {MOST} channels, {MOST_ELEMENTS} numbers"
        return f"it takes {most}, and no empty rows, got [{m}, {k}]"
    return None if block is None else misfit_of_rotation(block, regular)


def fitting_tiles(m: int, k: int, block: int | None) -> list[Tiles]:
    """All, the best first: many to a multiprocessor, with about four warps, that share what channels have."""
    choices = [Tiles(rows, warps) for warps in (1, 2, 4, 8, 16) for rows in (1, 2, 4, 8, 16)]
    choices = [each for each in choices if each.rows * padded(k) <= MOST and each.rows < 2 * m]
    fitting = [each for each in choices if each.held(k) <= MOST_HELD]
    few = HELD if block is None else HELD_OF_ROTATIONS
    return sorted(fitting, key=lambda t: (t.held(k) > few, abs(math.log2(t.warps / 4)), -t.rows))


def candidates(x: Shaped, *, dtype: DTypeLike = jnp.int8, **options: Any) -> tuning.Choice:
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
    return tuning.Choice(facts, fitting_tiles(x.shape[0], x.shape[1], options["block"])[:CANDIDATES])


def run(x: jax.Array, *, tiles: Tiles | None = None, **options: Any) -> Result:
    """See the contract."""
    return launch(x, tiles=tuning.pick("quantize_rows", "triton", candidates(x, **options), tiles), **options)


def launch(
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
    run: Run = compiled,
) -> Result:
    """The contract with these tiles, compiled or interpreted."""
    (m, k), static = x.shape, scale is not None
    channels = of_channels(modulation, activation, balance, signs, k)
    operands = {"x": x, **{name: channels.get(name) for name in ("shift", "factor", "multiplier")}}
    operands |= {
        name: None if each is None else each.ravel() for name, each in (("scale", scale), ("zero", zero))
    }
    of_rows = {
        "zeros": jnp.int8 if not symmetric and not static else None,
        "sums": jnp.int32 if with_sum else None,
    }
    results: dict[str, jax.ShapeDtypeStruct | None] = {
        "codes": jax.ShapeDtypeStruct((m, k), dtype),
        "scales": jax.ShapeDtypeStruct((m,), jnp.float32),
        **{name: kind and jax.ShapeDtypeStruct((m,), kind) for name, kind in of_rows.items()},
    }
    low, high = limits(bits, symmetric, dtype)
    top = np.float32(high if symmetric else high - low)
    constants = {
        "M": m,
        "K": k,
        "GROUP": 0 if modulation is None else m // len(modulation[0]),
        "EPS": float(np.float32(eps)),
        "GELU": activation is not None,
        "MULTIPLIER": "multiplier" in channels,
        "STAGES": 0 if block is None else block.bit_length() - 1,
        "REGULAR": regular,
        "ROTATED": 1.0 if block is None else float(np.float32(block**-0.5)),
        "LOW": low,
        "HIGH": high,
        "TOP": float(top),
        "STEP": float(np.float32(1) / top),
        "MOST": min(float(top) * 2.0**125, FLOAT32_MAX),
        "TINY": float(TINY),
        "SYMMETRIC": symmetric,
        "SCALES": 0 if scale is None else scale.size,
        "ZEROS": 0 if zero is None else zero.size,
        "FLOAT8": dtype == jnp.float8_e4m3fn,
        "SUM": with_sum,
        "ROWS": tiles.rows,
        "WIDTH": padded(k),
    }
    # Codes of plain rows are those of the reference bit for bit, so no product and sum may share a rounding.
    program = Program(kernel, operands, results, pl.cdiv(m, tiles.rows), constants, tiles.warps, fuses=False)
    made = run(program)
    named = {name: each[:, None] for name, each in made.items() if name != "codes"}
    return made["codes"], named["scales"], zero if static else named.get("zeros"), named.get("sums")
