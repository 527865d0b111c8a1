"""The int8 product on Hopper (sm_90): TMA loads, wgmma, and all the rest of the contract in the epilogue.

How to read it: `Tiles` is the only thing to tune; `product` builds and calls the kernel and asks no device;
`_load` is what the loading warpgroup does and `_compute` what the two others do; what follows the sums is in
`_sm90_epilogue.py`. They meet in a ring of slots of shared memory, which runs on from one output tile to the
next, so that the loads of a tile begin while the tile before it is computed:

    full[slot]   counts the two copies that fill it         load -> compute
    free[slot]   counts the warpgroups that have read it    compute -> load

A block takes output tiles until none is left; each computing warpgroup has half of the rows. It keeps the
sums of a tile in registers and finishes them, slice by slice, between the first steps of the next tile: with
1152 inputs there are nine steps for a tile, and the tensor cores would wait for the epilogue otherwise.

Blocks of a cluster work side by side on tiles of the same columns; each loads a part of the weights for all
of them, as the L2 cache could not feed the tensor cores otherwise. Rows past the end are loaded as zeros and
not stored: TMA clips both, in groups of eight rows.

Roofline on an H100 (1979 TOP/s of int8 at the peak clock, 3.0 TB/s of copies): 8192 x 1152 x 4608 is 87 GOP,
44 us, and moves 90 MB, 30 us.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from pallas_kernels.compat import COMPILED, Target
from pallas_kernels.scaled_matmul._sm90_epilogue import BY_COLUMN, BY_ROW, GROUPS, Epilogue, Refs

DEPTH = 128  # codes of a row in one slot: the 128 bytes that one swizzled line of shared memory holds
LOADING_REGISTERS, COMPUTING_REGISTERS = 40, 232  # a thread; 128 * (40 + 2 * 232) of the 65536 of a block
SHARED = 227 * 1024  # bytes of shared memory that a block may use
BARRIERS = 512  # of them at most for barriers

Of = dict[str, list[jax.Array]]  # vectors of rows, by name and by part of the rows of a warpgroup


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How a product is cut up.

    rows, columns: of the output tile that a block computes at a time.
    cluster: blocks, one below the other, that share the loads of weights.
    stages: slots of the ring, each of (rows + columns) * DEPTH bytes, or less if groups have fewer codes.
    band: tiles are taken in bands of so many columns of tiles at most, so that loads hit the L2 cache.
    """

    rows: int
    columns: int
    cluster: int
    stages: int
    band: int = 8


def most_stages(rows: int, columns: int, operands: dict[str, Any], out_dtype: DTypeLike) -> int:
    """The slots that fit into shared memory beside what the epilogue of these operands needs."""
    epilogue = Epilogue(operands, None, out_dtype, rows, columns, COMPILED)
    return (SHARED - BARRIERS - epilogue.bytes()) // ((rows + columns) * DEPTH)


def product(
    operands: dict[str, jax.Array],
    *,
    activation: str | None,
    out_dtype: DTypeLike,
    tiles: Tiles,
    cores: int,
    target: Target,
) -> jax.Array:
    """scaled_matmul.

    operands: x [m, k], w [n, k]; x_scale, w_scale, and where they are wanted x_zero and w_sum, w_zero and
    x_sum, bias, residual [m, n] of out_dtype, and gate [b, n]. Sums and zero points are int32, w_sum that of
    w - w_zero. Of several groups there are w_scales, w_sums, w_zeros [groups, n], x_sums [groups, m] instead.
    cores: blocks that run at a time.
    """
    (m, k), n = operands["x"].shape, operands["w"].shape[0]
    groups = operands["w_scales"].shape[0] if "w_scales" in operands else 1
    depth = min(DEPTH, k // groups)  # of a step: all its codes have one scale
    grid = pl.cdiv(m, tiles.rows * tiles.cluster), pl.cdiv(n, tiles.columns)
    epilogue = Epilogue(operands, activation, out_dtype, tiles.rows, tiles.columns, target)
    down, across = -m % (tiles.rows * tiles.cluster), -n % tiles.columns
    operands = epilogue.pad(down, across)
    shape = (m, n) if target.clips_stores else (m + down, n + across)
    names = [*operands, "out"]

    def ring(shape: tuple[int, int]) -> Any:
        return plgpu.SMEM((tiles.stages, *shape), jnp.int8, transforms=target.tiled(depth, jnp.int8))

    free = target.cluster_barrier("member", tiles.cluster, num_arrivals=GROUPS, num_barriers=tiles.stages)
    scratch = {
        "x_ring": ring((tiles.rows, depth)),
        "w_ring": ring(target.block(tiles.columns, depth)),
        "full": plgpu.Barrier(num_arrivals=2, num_barriers=tiles.stages),
        "free": free,
    }

    def body(*arguments: Any, **shared: Any) -> None:
        # Here and not in a branch: the interpreter of jax 0.10.2 keeps its first answer for all others.
        member, group = lax.axis_index("member"), lax.axis_index("warpgroup")
        refs = {**dict(zip(names, arguments, strict=True)), **shared}
        plan = Plan(grid, groups, k // groups // depth, depth, member, group, tiles, epilogue)
        lax.cond(group == GROUPS, lambda: _load(refs, plan), lambda: _compute(refs, plan))

    kernel = target.kernel(
        body,
        approx_math=activation is not None,
        out_type=jax.ShapeDtypeStruct(shape, out_dtype),
        scratch_types=scratch | epilogue.scratch(),
        grid=(min(cores // tiles.cluster, grid[0] * grid[1]),),
        grid_names=("cluster",),
        cluster=(tiles.cluster,),
        cluster_names=("member",),
        num_threads=GROUPS + 1,
        kernel_name="scaled_matmul",
        thread_name="warpgroup",
    )
    result = kernel(*{**operands, "w": target.stored(operands["w"])}.values())
    return result if target.clips_stores else result[:m, :n]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a warpgroup goes by.

    grid: clusters of tiles, down and across. steps: for each of the groups of scales, of `depth` codes each.
    member, group: which block of the cluster this is, and which warpgroup of the block.
    """

    grid: tuple[int, int]
    groups: int
    steps: int
    depth: int
    member: jax.Array
    group: jax.Array
    tiles: Tiles
    epilogue: Epilogue

    @property
    def half(self) -> int:
        """Rows of a tile for each computing warpgroup."""
        return self.tiles.rows // GROUPS

    @property
    def turns(self) -> jax.Array:
        """Tiles that this block computes, one after the other."""
        count, clusters = self.grid[0] * self.grid[1], lax.axis_size("cluster")
        return lax.div(count - 1 - lax.axis_index("cluster"), jnp.int32(clusters)) + 1

    def place(self, turn: Any) -> tuple[jax.Array, jax.Array]:
        """The first row and column of the tile of a turn: bands of columns, down one and up the next.

        Bands are as wide as the tiles say or less, all the same, so that each division is by a constant.
        """
        down, across = self.grid
        band = next(width for width in range(self.tiles.band, 0, -1) if across % width == 0)
        index = turn * lax.axis_size("cluster") + lax.axis_index("cluster")
        which, within = lax.div(index, jnp.int32(band * down)), lax.rem(index, jnp.int32(band * down))
        i, j = lax.div(within, jnp.int32(band)), which * band + lax.rem(within, jnp.int32(band))
        i = lax.select(lax.rem(which, jnp.int32(2)) == 0, i, down - 1 - i)
        return (i * self.tiles.cluster + self.member) * self.tiles.rows, j * self.tiles.columns

    def place_of_group(self, turn: Any) -> tuple[jax.Array, jax.Array]:
        """The same of the half of the tile that this warpgroup computes."""
        row, column = self.place(turn)
        return row + self.group * self.half, column

    def slot(self, step: Any) -> jax.Array:
        """Of the ring, for a step counted from the first one of this block."""
        return lax.rem(step, jnp.int32(self.tiles.stages))


def _load(refs: Refs, plan: Plan) -> None:
    plgpu.set_max_registers(LOADING_REGISTERS, action="decrease")
    tiles, target, steps = plan.tiles, plan.epilogue.target, plan.groups * plan.steps

    @pl.loop(0, plan.turns)
    def _(turn: jax.Array) -> None:
        row, column = plan.place(turn)
        rows, columns = pl.ds(row, tiles.rows), pl.ds(column, tiles.columns)

        @pl.loop(0, steps)
        def _(step: jax.Array) -> None:
            slot, inputs = plan.slot(turn * steps + step), pl.ds(step * plan.depth, plan.depth)
            x, w, full = refs["x"].at[rows, inputs], refs["w"].at[target.block(columns, inputs)], refs["full"]
            plgpu.barrier_wait(refs["free"].at[slot])
            plgpu.copy_gmem_to_smem(x, refs["x_ring"].at[slot], full.at[slot])
            target.copy_to_cluster(w, refs["w_ring"].at[slot], full.at[slot], "member", tiles.cluster)

        plan.epilogue.load_vectors(refs, row, column)

    plan.epilogue.await_vectors(refs)
    for slot in range(tiles.stages):  # a block stays while others of its cluster read from it or signal to it
        plgpu.barrier_wait(refs["free"].at[slot])


def _compute(refs: Refs, plan: Plan) -> None:
    plgpu.set_max_registers(COMPUTING_REGISTERS, action="increase")
    plan.epilogue.release_vectors(refs)
    for slot in range(plan.tiles.stages):
        plgpu.barrier_arrive(refs["free"].at[slot])
    compute = _compute_overlapped if plan.groups == 1 else _compute_groups
    compute(refs, plan)
    plgpu.wait_smem_to_gmem(0)


def _compute_overlapped(refs: Refs, plan: Plan) -> None:
    """Finishes each tile between the first steps of the next one, while the tensor cores work."""
    epilogue = plan.epilogue
    last = len(epilogue.slices) - 1

    def turn(index: jax.Array, before: tuple[jax.Array, Of]) -> tuple[jax.Array, Of]:
        here, there = plan.place_of_group(index), plan.place_of_group(index - 1)

        def finish(n: int) -> None:
            @pl.when(index > 0)
            def _() -> None:
                epilogue.finish_slice(refs, plan.group, there, *before, n)

        def finish_last_and_begin() -> Of:
            finish(last)
            return epilogue.begin(refs, plan.group, *here)

        tasks = [functools.partial(finish, n) for n in range(last)]
        sums, (*_, of_rows) = _sums(refs, plan, index * plan.steps, [*tasks, finish_last_and_begin])
        return sums, of_rows

    shape = (plan.half, plan.tiles.columns)
    nothing = jnp.zeros(shape, jnp.int32), epilogue.rows_from(refs, 0)
    sums, of_rows = lax.fori_loop(0, plan.turns, turn, nothing)
    for n in range(last + 1):
        epilogue.finish_slice(refs, plan.group, plan.place_of_group(plan.turns - 1), sums, of_rows, n)


def _sums(
    refs: Refs, plan: Plan, before: jax.Array, meanwhile: Sequence[Callable[[], Any]]
) -> tuple[jax.Array, list[Any]]:
    """The int32 sums of plan.steps steps, counted from `before`, and what tasks give.

    The tasks are done one after each of the first steps, while the tensor cores work.
    """

    def run(acc: Any) -> tuple[jax.Array, list[Any]]:
        def multiply(step: Any) -> None:
            slot = plan.slot(before + step)
            plgpu.barrier_wait(refs["full"].at[slot])
            x = refs["x_ring"].at[slot, pl.ds(plan.group * plan.half, plan.half)]
            plgpu.wgmma(acc, x, plan.epilogue.target.columns(refs["w_ring"].at[slot]))

        def release_before(step: Any) -> None:
            plgpu.wgmma_wait(1)  # the step before is done
            plgpu.barrier_arrive(refs["free"].at[plan.slot(before + step - 1)])

        got: list[Any] = []
        early = min(len(meanwhile), plan.steps)
        for step in range(early):
            multiply(step)
            if step:
                release_before(step)
            got += [task() for task in meanwhile[step : None if step == early - 1 else step + 1]]

        @pl.loop(early, plan.steps)
        def _(step: jax.Array) -> None:
            multiply(step)
            release_before(step)

        sums = acc[...]  # waits for the last step
        plgpu.barrier_arrive(refs["free"].at[plan.slot(before + plan.steps - 1)])
        return sums, got

    return pl.run_scoped(run, plgpu.ACC((plan.half, plan.tiles.columns), jnp.int32))


def _compute_groups(refs: Refs, plan: Plan) -> None:
    """Sums in float32, over groups of scales, their sums, less zero points, times their scales.

    While a warpgroup adds, the tensor cores work for the other one.
    """
    epilogue, shape = plan.epilogue, (plan.half, plan.tiles.columns)

    @pl.loop(0, plan.turns)
    def _(turn: jax.Array) -> None:
        row, column = plan.place_of_group(turn)
        of_rows = epilogue.begin(refs, plan.group, row, column)
        rows, columns = pl.ds(row, plan.half), pl.ds(column, plan.tiles.columns)

        def along(name: str, group: jax.Array, axis: int) -> jax.Array:
            index, layout = (group, rows if axis == 0 else columns), (BY_ROW, BY_COLUMN)[axis]
            vector = epilogue.target.load(refs[name], index, layout=layout, optimized=False)
            return lax.broadcast_in_dim(vector, shape, (axis,))

        def add(group: jax.Array, total: jax.Array) -> jax.Array:
            def vectors() -> dict[str, jax.Array]:
                by_axis = {"x_sums": 0, "w_scales": 1, "w_sums": 1, "w_zeros": 1}
                return {name: along(name, group, axis) for name, axis in by_axis.items() if name in refs}

            before = (turn * plan.groups + group) * plan.steps
            acc, (given,) = _sums(refs, plan, before, [vectors])
            if "w_sums" in given:
                (x_zero,) = of_rows["x_zero"]
                acc = acc - lax.broadcast_in_dim(x_zero, shape, (0,)) * given["w_sums"]
            if "w_zeros" in given:
                acc = acc - given["x_sums"] * given["w_zeros"]
            return total + acc.astype(jnp.float32) * given["w_scales"]

        total = lax.fori_loop(0, plan.groups, add, jnp.zeros(shape, jnp.float32))
        for n in range(len(epilogue.slices)):
            epilogue.finish_slice(refs, plan.group, (row, column), total, of_rows, n)
