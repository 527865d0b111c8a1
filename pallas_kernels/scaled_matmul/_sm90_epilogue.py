"""What follows the sums of a tile on Hopper: zero points, scales, bias, GELU, gate and residual, the store.

A warpgroup finishes its rows slice by slice. Whatever a slice needs has come while the sums were made:
vectors of columns into shared memory, by the loading warpgroup; vectors of rows into registers; residuals,
two slices ahead, into the slots that results are then stored from.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from pallas_kernels.compat import Target

GROUPS = 2  # warpgroups that compute; each has half of the rows of a tile
PART = 64  # rows that wgmma and the epilogue handle at a time
ALIGNMENT = 1024  # bytes, of every array in shared memory
BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)  # what a tile's layout leaves
COLUMNS = ("w_scale", "w_sum", "w_zero", "bias")  # operands with an element for each column

Refs = Mapping[str, Any]  # operands, result and shared memory by name


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """What follows the sums of tiles of rows x columns.

    operands: those of the product, or what has their shapes and dtypes.
    """

    operands: Mapping[str, Any]
    activation: str | None
    out_dtype: DTypeLike
    rows: int
    columns: int
    target: Target

    @property
    def vectors(self) -> list[str]:
        """The operands with an element for each column, less the gate."""
        return [name for name in COLUMNS if name in self.operands]

    @property
    def of_rows(self) -> list[str]:
        """The operands with an element for each row."""
        return [name for name in ("x_scale", "x_zero", "x_sum") if name in self.operands]

    @property
    def slices(self) -> list[tuple[int, int]]:
        """The first row, of those of a warpgroup, and column of each slice."""
        rows, columns = range(0, self.rows // GROUPS, PART), range(0, self.columns, self.width)
        return [(r, c) for r in rows for c in columns]

    @property
    def width(self) -> int:
        """Columns of a slice."""
        return 64 if self.columns % 64 == 0 else 48

    @property
    def slots(self) -> int:
        """Slices in shared memory for each warpgroup; of a residual, one leaves while two come."""
        return 3 if "residual" in self.operands else 2

    @property
    def tokens(self) -> int:
        """Rows that share a row of the gate."""
        return self.operands["x"].shape[0] // self.operands["gate"].shape[0]

    @property
    def gates(self) -> int:
        """Rows of the gate that a part needs: two where an image may end inside of it."""
        return 1 if self.operands["gate"].shape[0] == 1 or self.tokens % PART == 0 else 2

    @property
    def copies(self) -> int:
        """Into shared memory, of vectors of columns for a tile."""
        return len(self.vectors) + ("gate" in self.operands and self.rows // PART * self.gates)

    def pad(self, rows: int, columns: int) -> dict[str, jax.Array]:
        """The operands, with so many rows and columns more in their vectors, of which loads clip nothing."""
        more = {name: rows for name in ("x_scale", "x_zero", "x_sum", "x_sums")}
        more |= {name: columns for name in (*COLUMNS, "gate", "w_scales", "w_sums", "w_zeros")}
        padded = dict(self.operands)
        for name in more.keys() & padded.keys():
            padded[name] = jnp.pad(padded[name], [(0, 0)] * (padded[name].ndim - 1) + [(0, more[name])])
        return padded

    def scratch(self) -> dict[str, Any]:
        """The shared memory."""
        transforms = self.target.tiled(self.width, self.out_dtype)
        slots = plgpu.SMEM((GROUPS, self.slots, PART, self.width), self.out_dtype, transforms=transforms)
        arrays: dict[str, Any] = {"slots": slots}
        for name in self.vectors:
            arrays[f"{name}_tile"] = plgpu.SMEM((self.columns,), self.operands[name].dtype)
        if "gate" in self.operands:
            gates = self.rows // PART * self.gates
            arrays["gate_tile"] = plgpu.SMEM((gates, self.columns), self.operands["gate"].dtype)
        if self.copies:
            arrays["vectors_full"] = plgpu.Barrier(num_arrivals=self.copies)
            arrays["vectors_free"] = plgpu.Barrier(num_arrivals=GROUPS)
        if "residual" in self.operands:
            arrays["fetched"] = plgpu.Barrier(num_barriers=GROUPS * self.slots)
        return arrays

    def bytes(self) -> int:
        """Those of the scratch, barriers aside."""
        arrays = [array for array in self.scratch().values() if not isinstance(array, plgpu.Barrier)]
        sizes = [math.prod(array.shape) * jnp.dtype(array.dtype).itemsize for array in arrays]
        return sum(pl.cdiv(size, ALIGNMENT) * ALIGNMENT for size in sizes)

    def release_vectors(self, refs: Refs) -> None:
        """Says, for a computing warpgroup, that new vectors may come."""
        if self.copies:
            plgpu.barrier_arrive(refs["vectors_free"])

    def await_vectors(self, refs: Refs) -> None:
        """Waits until both computing warpgroups have said so."""
        if self.copies:
            plgpu.barrier_wait(refs["vectors_free"])

    def load_vectors(self, refs: Refs, row: jax.Array, column: jax.Array) -> None:
        """For the tile at row and column, by the loading warpgroup; waits for the use of those before."""
        self.await_vectors(refs)
        columns = pl.ds(column, self.columns)
        for name in self.vectors:
            plgpu.copy_gmem_to_smem(refs[name].at[columns], refs[f"{name}_tile"], refs["vectors_full"])
        if "gate" in self.operands:
            last = jnp.int32(self.operands["gate"].shape[0] - 1)
            for index in range(self.rows // PART * self.gates):
                first = row + index // self.gates * PART
                image = lax.min(lax.div(first, jnp.int32(self.tokens)) + index % self.gates, last)
                gate, tile = refs["gate"].at[image, columns], refs["gate_tile"].at[index]
                plgpu.copy_gmem_to_smem(gate, tile, refs["vectors_full"])

    def begin(
        self, refs: Refs, group: jax.Array, row: jax.Array, column: jax.Array
    ) -> dict[str, list[jax.Array]]:
        """Asks for the residual of a warpgroup, its rows from `row`; gives its vectors of rows, by part."""
        if "residual" in self.operands:
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the tile before has left all slots
            for index in range(min(2, len(self.slices))):
                self._fetch(refs, group, row, column, index)
        return self.rows_from(refs, row)

    def rows_from(self, refs: Refs, row: Any) -> dict[str, list[jax.Array]]:
        """The vectors of rows of a warpgroup, by part."""
        parts = [pl.ds(row + r, PART) for r in range(0, self.rows // GROUPS, PART)]
        return {
            name: [self.target.load(refs[name], (part,), layout=BY_ROW, optimized=False) for part in parts]
            for name in self.of_rows
        }

    def _fetch(self, refs: Refs, group: jax.Array, row: jax.Array, column: jax.Array, index: int) -> None:
        (r, c), slot = self.slices[index], index % self.slots
        residual = refs["residual"].at[pl.ds(row + r, PART), pl.ds(column + c, self.width)]
        plgpu.copy_gmem_to_smem(
            residual, refs["slots"].at[group, slot], refs["fetched"].at[group * self.slots + slot]
        )

    def finish_slice(
        self,
        refs: Refs,
        group: jax.Array,
        place: tuple[jax.Array, jax.Array],
        sums: jax.Array,
        of_rows: dict[str, list[jax.Array]],
        index: int,
    ) -> None:
        """From the sums of a warpgroup, whose first row and column are the place, to memory."""
        (row, column), residual = place, "residual" in self.operands
        if index == 0 and self.copies:
            plgpu.barrier_wait(refs["vectors_full"])
        (r, c), slot = self.slices[index], index % self.slots
        mine = {name: parts[r // PART] for name, parts in of_rows.items()}
        y = self._scale(refs, sums[r : r + PART, c : c + self.width], mine, c)
        if "gate" in self.operands:
            y = self._gate(refs, group * (self.rows // GROUPS) + r, row + r, c, y)
        if index == len(self.slices) - 1:
            self.release_vectors(refs)
        if residual:
            plgpu.barrier_wait(refs["fetched"].at[group * self.slots + slot])
            fetched = self.target.load(refs["slots"], (group, slot), layout=plgpu.Layout.WGMMA)
            y = fetched.astype(jnp.float32) + y
        else:  # the first slice of a tile may follow one that has the same slot
            plgpu.wait_smem_to_gmem(0 if index == 0 else 1, wait_read_only=True)
        refs["slots"][group, slot] = y.astype(self.out_dtype)
        plgpu.commit_smem()
        result = refs["out"].at[pl.ds(row + r, PART), pl.ds(column + c, self.width)]
        plgpu.copy_smem_to_gmem(refs["slots"].at[group, slot], result)
        if residual and index + 2 < len(self.slices):
            plgpu.wait_smem_to_gmem(1, wait_read_only=True)  # the slice before has left its slot
            self._fetch(refs, group, row, column, index + 2)

    def _scale(self, refs: Refs, acc: jax.Array, mine: dict[str, jax.Array], c: int) -> jax.Array:
        """The contract up to the activation, for a slice from column c of the tile.

        acc: int32 sums, or of groups what they have been added up to in float32.
        """

        def along(vector: jax.Array, axis: int) -> jax.Array:
            return lax.broadcast_in_dim(vector, acc.shape, (axis,))

        def of_columns(name: str) -> jax.Array:
            tile = refs[f"{name}_tile"]
            return along(
                self.target.load(tile, (pl.ds(c, self.width),), layout=BY_COLUMN, optimized=False), 1
            )

        if "w_sum" in self.operands:
            acc = acc - along(mine["x_zero"], 0) * of_columns("w_sum")
        if "w_zero" in self.operands:
            acc = acc - along(mine["x_sum"], 0) * of_columns("w_zero")
        y = acc.astype(jnp.float32) * of_columns("w_scale") if "w_scale" in self.operands else acc
        y = y * along(mine["x_scale"], 0)
        if "bias" in self.operands:
            y = y + of_columns("bias").astype(jnp.float32)
        return y if self.activation is None else gelu(y)

    def _gate(self, refs: Refs, local: jax.Array, row: jax.Array, c: int, y: jax.Array) -> jax.Array:
        """Gate times y; local: the first row of the part in the tile, row: in the result."""
        first = local // PART * self.gates

        def gate(index: int) -> jax.Array:
            of_columns = (first + index, pl.ds(c, self.width))
            vector = self.target.load(refs["gate_tile"], of_columns, layout=BY_COLUMN, optimized=False)
            return lax.broadcast_in_dim(vector.astype(jnp.float32), y.shape, (1,))

        if self.gates == 1:
            return gate(0) * y
        left = jnp.int32(self.tokens) - lax.rem(
            row, jnp.int32(self.tokens)
        )  # rows of the image of the first row
        rows = self.target.iota(y.shape, 0, layout=plgpu.Layout.WGMMA)
        return lax.select(rows < left, gate(0), gate(1)) * y


def gelu(y: jax.Array) -> jax.Array:
    """The tanh form as y / (1 + exp(-2 u)), which loses nothing where tanh is near -1.

    A division is slow, so it is the square of an inverse root; that and the exponential are one instruction
    each, off by 2**-22.
    """
    factor = -2 * math.sqrt(2 / math.pi) / math.log(2)  # exp(-2 u) as a power of two
    inverse = lax.rsqrt(1 + lax.exp2(y * (factor + factor * 0.044715 * (y * y))))
    return y * (inverse * inverse)
