"""scaled_matmul of int8 codes on Hopper, by the kernel in `_sm90.py`: its limits, its tiles, its operands.

Groups of scales buy accuracy with time: after the steps of each group a warpgroup converts, scales and adds
all of its sums, while the tensor cores work for the other one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels import tuning
from pallas_kernels.compat import COMPILED, Target
from pallas_kernels.devices import NO_GPU, Gpu, default_gpu
from pallas_kernels.scaled_matmul._sm90 import Tiles, most_stages, product
from pallas_kernels.scaled_matmul._sm90_epilogue import PART

Shaped = jax.Array | jax.ShapeDtypeStruct
CAPABILITY = (9, 0)
ROWS = 8  # that TMA handles together
LEAST_STAGES, MOST_STAGES = 3, 4  # with fewer, loads are waited for; with more, the loading registers spill
DEPTHS = (128, 64, 32)  # codes in a step; a swizzled line of shared memory has at most the first
SHAPES = ((128, 128), (128, 144), (128, 192))  # of tiles
FEW = {"x", "w", "x_scale", "w_scale", "bias"}  # with more operands, registers hold no tile of 192 columns
SHAPE_OF_GROUPS = (128, 128)  # registers hold the sums of a group and of all groups
FLOATS = (jnp.bfloat16, jnp.float16, jnp.float32)


def unsupported(
    x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array, **options: Any
) -> str | None:
    """Why this product is none for the kernel, here."""
    return wrong_device(default_gpu()) or misfit(x, w, x_scale, w_scale, **options)


def wrong_device(gpu: Gpu | None) -> str | None:
    """Why the kernel does not run on a device."""
    if gpu is None:
        return NO_GPU
    if gpu.capability != CAPABILITY:
        major, minor = gpu.capability
        return f"it is written for compute capability 9.0 (Hopper), and {gpu.name} has {major}.{minor}"
    return None


def misfit(
    x: Shaped,
    w: Shaped,
    x_scale: Shaped,
    w_scale: Shaped,
    *,
    residual: Shaped | None = None,
    gate: Shaped | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    **_: Any,
) -> str | None:
    """Why the kernel cannot compute this product on any device."""
    (m, k), n, groups = x.shape, w.shape[0], w_scale.shape[1]
    if x.dtype != jnp.int8:
        return (
            f"it takes int8 codes, not {x.dtype}: the tensor cores of Hopper keep fewer bits of a float8 sum"
            f" than the contract asks for"
        )
    if k // groups not in DEPTHS and k // groups % DEPTHS[0]:
        most, *fewer = DEPTHS
        return f"it needs groups of a multiple of {most} codes, or of one of {fewer}, got {k // groups}"
    if n % PART or (m > ROWS and m % ROWS):
        return f"it needs multiples of {ROWS} rows (or fewer) and of {PART} columns, got m={m}, n={n}"
    if out_dtype not in FLOATS:
        return f"it writes bfloat16, float16 or float32, not {jnp.dtype(out_dtype)}"
    if residual is not None and residual.dtype != out_dtype:
        return (
            f"it takes a residual of the dtype that it writes, {jnp.dtype(out_dtype)}, not {residual.dtype}"
        )
    if gate is not None and gate.shape[0] > 1 and m // gate.shape[0] < PART:
        return f"it needs images of {PART} rows at least for a gate, got {m // gate.shape[0]}"
    return None


def ranked_tiles(operands: dict[str, Any], out_dtype: DTypeLike, *, cores: int) -> list[Tiles]:
    """All that fit; first those that keep the most of a device busy, and of equal ones, to a percent, those
    that load least.

    Its blocks take tiles in waves, and the last wave is not full.
    operands: those of the kernel, or what has their shapes and dtypes.
    """
    m, n = operands["x"].shape[0], operands["w"].shape[0]

    def merit(shape: tuple[int, int, int]) -> tuple[float, float]:
        rows, columns, cluster = shape
        together = cores // cluster
        waves = pl.cdiv(pl.cdiv(m, rows * cluster) * pl.cdiv(n, columns), together)
        busy = m * n / (waves * together * rows * cluster * columns)
        loads = 1 / columns + 1 / (rows * cluster)  # bytes for each multiplication
        return round(busy, 2), -loads

    possible = list(SHAPES if operands.keys() <= FEW else SHAPES[:2])
    if "w_scales" in operands:
        possible = [SHAPE_OF_GROUPS]
    stages = {shape: most_stages(*shape, operands, out_dtype) for shape in possible}
    shapes = [
        (*shape, cluster)
        for shape, most in stages.items()
        for cluster in (1, 2)
        if most >= LEAST_STAGES and cluster <= cores
    ]
    return [
        Tiles(rows, columns, cluster, min(stages[rows, columns], MOST_STAGES))
        for rows, columns, cluster in sorted(shapes, key=merit, reverse=True)
    ]


def choose_tiles(operands: dict[str, Any], out_dtype: DTypeLike, *, cores: int) -> Tiles:
    """The first of them."""
    return ranked_tiles(operands, out_dtype, cores=cores)[0]


def candidates(
    x: Shaped,
    w: Shaped,
    x_scale: Shaped,
    w_scale: Shaped,
    *,
    activation: str | None,
    out_dtype: DTypeLike,
    **options: Any,
) -> tuning.Choice:
    """All tiles that fit a product on the default device, for `tuning`."""
    gpu = default_gpu()
    assert gpu is not None  # unsupported has said so
    operands = jax.eval_shape(_operands, x, w, x_scale, w_scale, **options)
    facts = {
        "m": x.shape[0],
        "k": x.shape[1],
        "n": w.shape[0],
        "groups": w_scale.shape[1],
        "operands": "+".join(sorted(operands)),
        "activation": activation,
        "out": jnp.dtype(out_dtype).name,
    }
    return tuning.Choice(facts, ranked_tiles(operands, out_dtype, cores=gpu.cores))


def launch(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    activation: str | None = None,
    out_dtype: DTypeLike = jnp.bfloat16,
    cores: int,
    tiles: Tiles | None = None,
    target: Target = COMPILED,
    **options: Any,
) -> jax.Array:
    """The contract with these tiles, or with some that fit a device of so many cores; asks no device."""
    operands = _operands(x, w, x_scale, w_scale, **options)
    tiles = choose_tiles(operands, out_dtype, cores=cores) if tiles is None else tiles
    return product(
        operands, activation=activation, out_dtype=out_dtype, tiles=tiles, cores=cores, target=target
    )


def _operands(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    x_zero: jax.Array | None = None,
    w_zero: jax.Array | None = None,
    x_sum: jax.Array | None = None,
    w_sum: jax.Array | None = None,
    **after: jax.Array | None,
) -> dict[str, jax.Array]:
    """Those of the contract as the kernel takes them: vectors, one for each group if there are several."""
    (m, k), n, groups = x.shape, w.shape[0], w_scale.shape[1]

    def vectors(of_groups: jax.Array, length: int) -> jax.Array:
        every = jnp.broadcast_to(of_groups, (length, groups))
        return every[:, 0] if groups == 1 else every.T

    def sums(codes: jax.Array) -> jax.Array:
        return codes.reshape(codes.shape[0], groups, -1).sum(2, dtype=jnp.int32)

    s = "" if groups == 1 else "s"
    operands = {
        "x": x,
        "w": w,
        "x_scale": jnp.broadcast_to(x_scale[:, 0], m),
        f"w_scale{s}": vectors(w_scale, n),
    }
    if x_zero is not None:
        w_sum = sums(w) if w_sum is None else w_sum
        w_sum = w_sum if w_zero is None else w_sum - k // groups * w_zero.astype(jnp.int32)
        operands["x_zero"] = jnp.broadcast_to(x_zero[:, 0].astype(jnp.int32), m)
        operands[f"w_sum{s}"] = vectors(w_sum, n)
    if w_zero is not None:
        operands[f"x_sum{s}"] = vectors(sums(x) if x_sum is None else x_sum, m)
        operands[f"w_zero{s}"] = vectors(w_zero.astype(jnp.int32), n)
    return operands | {name: value for name, value in after.items() if value is not None}


def run(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    *,
    tiles: Tiles | None = None,
    **options: Any,
) -> jax.Array:
    """See the contract."""
    gpu = default_gpu()
    assert gpu is not None  # unsupported has said so
    choice = candidates(x, w, x_scale, w_scale, **options)
    chosen = tuning.pick("scaled_matmul", "mosaic_gpu", choice, tiles)
    return launch(x, w, x_scale, w_scale, cores=gpu.cores, tiles=chosen, **options)
