"""quantize_rows on TPUs, of rows that are rotated: each is read once, written once, and in the core between.

    bytes of a bfloat16 row of k channels: 2 k in, k out; at the 819 GB/s of a TPU v5e that is
    35 us for [8192, 1152] and 138 us for [8192, 4608]; the rotation takes the matrix unit as long

XLA fuses the other steps, but not a product with what follows it: compiled for a TPU v5e (libtpu 0.0.42, jax
0.10.2) it keeps 189 MB in memory between its kernels for [8192, 1152] modulated and rotated in blocks of 32,
and nothing for rows that are not rotated; nor does this kernel.

The steps are those of the reference, on a block of rows in vector memory. What belongs to a channel and not
to a row (1 + scale and shift, balance, signs) XLA prepares.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from pallas_kernels import lanes, tuning
from pallas_kernels.devices import NO_TPU, default_tpu
from pallas_kernels.hadamard import _lanes
from pallas_kernels.quantize_rows._channels import of_channels
from pallas_kernels.quantize_rows.reference import Result, normalized, quantized

_Operand = tuple[jax.Array, pl.BlockSpec]


def unsupported(x: jax.Array, *, block: int | None, regular: bool, **_: Any) -> str | None:
    """Why the kernel cannot run on the default device, or not with these shapes, or is of no use."""
    if default_tpu() is None:
        return NO_TPU
    if block is None:
        return "XLA keeps nothing in memory between the steps of rows that are not rotated"
    return _lanes.misfit(x.shape[1], block, regular) or lanes.misfit(x)


def candidates(
    x: jax.Array | jax.ShapeDtypeStruct, *, modulation: tuple[Any, Any] | None, **options: Any
) -> tuning.Choice:
    """All tiles, for `tuning`."""
    options["modulation"] = modulation
    before = ("modulation", "activation", "balance", "signs")
    facts = {
        "m": x.shape[0],
        "k": x.shape[1],
        "x": x.dtype.name,
        "block": options["block"],
        "before": "+".join(name for name in before if options[name] is not None),
    }
    return tuning.Choice(facts, lanes.fitting(len(x) // _groups(modulation), x.shape[1]))


def run(x: jax.Array, *, tiles: lanes.Tiles | None = None, **options: Any) -> Result:
    """See the contract."""
    chosen = tuning.pick("quantize_rows", "tpu", candidates(x, **options), tiles)
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
    tiles: lanes.Tiles,
    interpret: Any = False,
) -> Result:
    """The contract with given tiles, for a TPU or interpreted, also of rows that are not rotated; asks no
    device for anything.
    """
    (m, k), groups = x.shape, _groups(modulation)
    n, static = m // groups, scale is not None
    grid = (groups, pl.cdiv(n, tiles.rows))
    rows = _rows_of(tiles, k)

    operands: dict[str, _Operand] = {"x": (x.reshape(groups, n, k), rows)}
    for name, each in of_channels(modulation, activation, balance, signs, k).items():
        operands[name] = each.reshape(-1, 1, k), _whole(1, k, of_group=each.ndim == 2)
    for name, given in (("scale", scale), ("zero", zero)):
        if given is not None and given.size == 1:
            operands[name] = given.reshape(1, 1, 1).astype(jnp.float32), _whole(1, 1)
        elif given is not None:
            operands[name] = given.reshape(groups, n, 1).astype(jnp.float32), _rows_of(tiles, 1)
    rotation: dict[str, Any] | None = None
    if block is not None:
        h = _lanes.lane_matrix(block, regular)
        operands["h"] = h[None], _whole(*h.shape)
        exact = modulation is None and activation is None and balance is None
        rotation = {"block": block, "regular": regular, "short": exact and x.dtype == jnp.bfloat16}

    line = pl.BlockSpec((None, None, 1, tiles.rows), lambda group, i: (group, i, 0, 0))
    of_rows = {"scales": jnp.float32}  # what is one number a row: a line of a block's, not a column
    if not symmetric and not static:
        of_rows["zeros"] = jnp.int32
    if with_sum:
        of_rows["sums"] = jnp.int32
    lines = [jax.ShapeDtypeStruct((*grid, 1, tiles.rows), of) for of in of_rows.values()]
    made, *found = pl.pallas_call(
        functools.partial(
            _quantize_block,
            names=(*operands, "codes", *of_rows),
            eps=eps,
            gelu=activation is not None,
            rotation=rotation,
            codes={"bits": bits, "symmetric": symmetric, "dtype": dtype},
        ),
        grid=grid,
        in_specs=[spec for _, spec in operands.values()],
        out_specs=[rows, *(line for _ in lines)],
        out_shape=[jax.ShapeDtypeStruct((groups, n, k), dtype), *lines],
        compiler_params=lanes.params(len(grid)),
        interpret=interpret,
        name="quantize_rows",
    )(*(operand for operand, _ in operands.values()))
    named = {
        name: each.reshape(groups, -1)[:, :n].reshape(m, 1) for name, each in zip(of_rows, found, strict=True)
    }
    if "zeros" in named:
        zero = named["zeros"].astype(jnp.int8)
    return made.reshape(m, k), named["scales"], zero, named.get("sums")


def _groups(modulation: tuple[Any, Any] | None) -> int:
    return 1 if modulation is None else len(modulation[0])


def _rows_of(tiles: lanes.Tiles, k: int) -> pl.BlockSpec:
    """The rows of a block, of [groups, n, k]."""
    return pl.BlockSpec((None, tiles.rows, k), lambda group, i: (group, i, 0))


def _whole(*shape: int, of_group: bool = False) -> pl.BlockSpec:
    """All of a matrix, of which there is one a group, or one."""
    return pl.BlockSpec((None, *shape), lambda group, _: (group if of_group else 0, 0, 0))


def _quantize_block(
    *refs: Any,
    names: tuple[str, ...],
    eps: float,
    gelu: bool,
    rotation: dict[str, Any] | None,
    codes: dict[str, Any],
) -> None:
    """Codes of the rows of a block. x, codes: [rows, k] in vector memory; what belongs to rows: [1, rows]."""
    ref = dict(zip(names, refs, strict=True))
    y = ref["x"][...].astype(jnp.float32)
    if "factor" in ref:
        y = normalized(y, eps) * ref["factor"][...] + ref["shift"][...]
    if gelu:
        y = jax.nn.gelu(y, approximate=True)
    if "multiplier" in ref:
        y = y * ref["multiplier"][...]
    if rotation is not None:
        y = _lanes.transformed(y, ref["h"][...], **rotation)
    scale, zero = (ref[name][...] if name in ref else None for name in ("scale", "zero"))
    made = quantized(y, **codes, scale=scale, zero=zero, with_sum="sums" in ref)
    ref["codes"][...] = made[0]
    for name, column in zip(("scales", "zeros", "sums"), made[1:], strict=True):
        if name in ref and column is not None:
            ref[name][...] = lanes.as_row(column.astype(ref[name].dtype))
