"""Sensitivity: what the samples lose when one unit alone has fewer bits.

The units are layers, all layers of a kind in a block, or whole kinds; at all denoising times or range by
range. Samples start from the same noise, and are compared at the end of sampling: the error of a layer by
itself says little of what a picture suffers. `proxy` is what statistics alone can say, without any sampling.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from viditq_jax.net import Net
from viditq_jax.quant.fold import fold
from viditq_jax.quant.qweight import quantized_part
from viditq_jax.quant.search.table import Row, Table, append
from viditq_jax.quant.search.variants import Bits, Variants
from viditq_jax.quant.stats import Stats

Samples = Any  # what `run` gives and metrics take
Run = Callable[[Mapping[str, Bits]], Samples]  # bits of every layer -> samples
Metric = Callable[[Samples, Samples], float]  # (samples, those with the most bits) -> 0 where they are equal


def units(layers: Sequence[str], by: str = "layer") -> list[tuple[str, ...]]:
    """The layers that change together: each "layer", all of one "kind" in a block, or each whole "block".

    Of "blocks/7/attn/qkv" the block is "blocks/7", the kind "attn".
    """
    if by == "layer":
        return [(path,) for path in layers]
    depth = {"kind": 3, "block": 2}.get(by)
    if depth is None:
        raise ValueError(f"units by {by!r}; choose layer, kind or block.")
    found: dict[tuple[str, ...], list[str]] = {}
    for path in layers:
        found.setdefault(tuple(path.split("/")[:depth]), []).append(path)
    return [tuple(each) for each in found.values()]


def sensitivity(
    run: Run,
    table: Table,
    metrics: Mapping[str, Metric],
    *,
    by: str = "layer",
    file: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    advance: Callable[[int], None] | None = None,
) -> Table:
    """The table with a row for every unit, width and range.

    run: makes samples, always from the same noise; with `Variants` it compiles once. table: without rows.
    file: holds the rows as they are measured, and those of an earlier run that was cut short. shard: (i, n)
        measures every n-th row from i on; the files of all shards together hold all rows.
    advance: called with the number of rows just done.
    Raises ValueError for a metric that is not finite, and for a file of other settings.
    """
    most, ranges = table.bits[-1], table.ranges
    wanted = [
        (unit, bits, r) for unit in units(list(table.layers), by) for bits in table.bits[:-1] for r in ranges
    ][shard[0] :: shard[1]]
    table = table if file is None else table.open(file)
    done = {row.key for row in table.rows}
    if advance and done:
        advance(len(done & set(wanted)))
    todo = [key for key in wanted if key not in done]
    if not todo:
        return table
    reference = run(_bits(table, (), most, None))
    for unit, bits, r in todo:
        samples = run(_bits(table, unit, bits, r))
        values = {name: float(metric(samples, reference)) for name, metric in metrics.items()}
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise ValueError(f"{', '.join(unit)} with {bits} bits gives a {bad[0]} that is not finite.")
        row = Row(unit, bits, values, r)
        if file is not None:
            append(file, row)
        table = table.with_rows([row])
        if advance:
            advance(1)
    return table


def _bits(table: Table, unit: tuple[str, ...], bits: int, r: int | None) -> dict[str, Bits]:
    """Of every layer: those of the unit have `bits`, in range r alone where it is given; the others the
    most.
    """
    most = table.bits[-1]
    if not table.bounds:
        return {path: bits if path in unit else most for path in table.layers}
    every = range(len(table.bounds) + 1)
    return {path: tuple(bits if path in unit and i == r else most for i in every) for path in table.layers}


def proxy(net: Net, table: Table, variants: Variants, stats: Stats, *, by: str = "layer") -> Table:
    """The table with the error of each unit's own output as the metric "layer_error", without any sampling.

    It is tr(D G D') / tr(W G W'): W the prepared weight, D what fewer bits change of it against the most, G
    the Gram matrix of its inputs, which `stats` must hold. It knows nothing of what later layers do with
    the error.
    net: in floats. Raises ValueError where a Gram matrix is missing.
    """
    if missing := [path for path in table.layers if path not in stats or stats[path].gram is None]:
        raise ValueError(
            f"{len(missing)} layers have no Gram matrix ({missing[0]}, ...); calibrate with a recipe whose"
            " rounding keeps them, such as gptq."
        )
    _, stats = fold(net, table.recipe.resolve(net.weights()), stats)
    errors: dict[tuple[str, int], float] = {}
    for path in table.layers:
        full = quantized_part(variants.weights[table.bits[-1]][path])
        assert full is not None
        layer = stats[path]
        for step in full.prepare:
            layer = layer.through(step)
        for bits in table.bits[:-1]:
            part = quantized_part(variants.weights[bits][path])
            assert part is not None
            errors[path, bits] = float(
                _output_error(part.weight.dequantize(), full.weight.dequantize(), layer.gram)
            )
    rows = [
        Row(unit, bits, {"layer_error": sum(errors[path, bits] for path in unit)})
        for unit in units(list(table.layers), by)
        for bits in table.bits[:-1]
    ]
    return table.with_rows(rows)


@jax.jit
def _output_error(weight: jax.Array, full: jax.Array, gram: jax.Array) -> jax.Array:
    change = weight - full
    return jnp.sum((change @ gram) * change) / jnp.maximum(jnp.sum((full @ gram) * full), 1e-30)
