"""The table of a search: what the model loses when one unit has fewer bits, measured at the end of sampling.

A unit is a layer, or some layers that share their bits, at all denoising times or in one range of them.
Written as a file it has a line of settings, and then a line a measured unit; a line that a killed run left
unfinished does not count.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from viditq_jax.files import append_line, drop_torn_line, whole_lines, write_atomic
from viditq_jax.quant.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a plan has to know of a layer.

    numbers: of its weight. group: whose metric judges it. bytes: that it takes with each of the bits.
    """

    numbers: int
    group: str
    bytes: Mapping[int, int]


@dataclasses.dataclass(frozen=True)
class Row:
    """A unit with these bits, all others with the most: how far the samples then are, by metric."""

    layers: tuple[str, ...]
    bits: int
    values: Mapping[str, float]
    range: int | None = None

    @property
    def key(self) -> tuple[tuple[str, ...], int, int | None]:
        """What no two rows of a table share."""
        return self.layers, self.bits, self.range


@dataclasses.dataclass(frozen=True)
class Table:
    """All rows, and what they are of.

    recipe: that gives the layers everything but their bits. bits: that a layer may have, rising. layers:
    those whose bits are open, in the order of the model. bounds: times at which the ranges of the rows
    meet; none where they are of all times. facts: how the rows were measured.
    """

    recipe: Recipe
    bits: tuple[int, ...]
    layers: Mapping[str, Layer]
    rows: tuple[Row, ...] = ()
    bounds: tuple[int, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ranges(self) -> tuple[int | None, ...]:
        """Of the rows of one unit."""
        return tuple(range(len(self.bounds) + 1)) if self.bounds else (None,)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the denoising steps, in each range; equal where the table does not say."""
        count = len(self.ranges)
        return tuple(self.facts.get("shares", (1 / count,) * count))

    def units(self) -> list[tuple[str, ...]]:
        """The layers of each unit, in the order of the rows."""
        return list(dict.fromkeys(row.layers for row in self.rows))

    def value(self, layers: tuple[str, ...], bits: int | tuple[int, ...], metric: str) -> float:
        """What a unit costs with these bits, or with bits for each range; with the most bits nothing.

        Raises ValueError for what was not measured.
        """
        each = (bits,) * len(self.ranges) if isinstance(bits, int) else bits
        return sum(self._value(layers, b, metric, r) for b, r in zip(each, self.ranges, strict=True))

    def _value(self, layers: tuple[str, ...], bits: int, metric: str, r: int | None) -> float:
        if bits == self.bits[-1]:
            return 0.0
        row = self._by_key.get((layers, bits, r))
        if row is None or metric not in row.values:
            raise ValueError(
                f"{', '.join(layers)} with {bits} bits lacks {metric!r}; the table is not finished: run the"
                " search again with the same settings, and it goes on."
            )
        return row.values[metric]

    @cached_property
    def _by_key(self) -> dict[tuple[tuple[str, ...], int, int | None], Row]:
        return {row.key: row for row in self.rows}

    def settings(self) -> dict[str, Any]:
        """All but the rows, as JSON: what a run that goes on must share."""
        layers = {path: dataclasses.asdict(layer) for path, layer in self.layers.items()}
        head = {
            "recipe": self.recipe.to_json(),
            "bits": list(self.bits),
            "bounds": list(self.bounds),
            "layers": layers,
            "facts": dict(self.facts),
        }
        return json.loads(json.dumps(head))

    def with_rows(self, rows: Sequence[Row]) -> "Table":
        """The table with these rows as well."""
        return dataclasses.replace(self, rows=(*self.rows, *rows))

    @classmethod
    def read(cls, file: str | Path) -> "Table":
        """The table that a search wrote. Raises ValueError for a file that is none, with the line."""
        lines = whole_lines(Path(file))
        try:
            head = json.loads(lines[0])
            layers = {
                path: Layer(
                    int(each["numbers"]), str(each["group"]), {int(b): n for b, n in each["bytes"].items()}
                )
                for path, each in head["layers"].items()
            }
            table = cls(
                Recipe.from_json(head["recipe"], file=str(file)),
                tuple(head["bits"]),
                layers,
                bounds=tuple(head["bounds"]),
                facts=head["facts"],
            )
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"{file} is no table of a search ({type(error).__name__}: {error}); delete it and run again."
            ) from error
        return table.with_rows([_row(line, f"{file} line {i}") for i, line in enumerate(lines[1:], 2)])

    def open(self, file: Path) -> "Table":
        """The table with the rows that the file holds already; a fresh file if there is none.

        Raises ValueError for a file of other settings.
        """
        if not file.is_file() or not whole_lines(file):  # killed before its first line was whole
            write_atomic(file, json.dumps(self.settings()) + "\n")
            return self
        rows = self.rows_of(file)
        drop_torn_line(file)
        return self.with_rows(rows)

    def rows_of(self, file: Path) -> tuple[Row, ...]:
        """What a file of the same settings holds by now; somebody else may be writing it.

        Raises ValueError for a file of other settings.
        """
        if not whole_lines(file):
            return ()
        held = Table.read(file)
        ours, theirs = self.settings(), held.settings()
        if differs := [name for name in ours if ours[name] != theirs[name]]:
            raise ValueError(
                f"{file} was made with another {', '.join(differs)}; give another folder for these settings."
            )
        return held.rows


def gather(table: Table, file: Path, shards: Sequence[Path]) -> None:
    """Add to a table's file the rows that shards of the same search have measured and it lacks.

    Raises ValueError for a shard of other settings.
    """
    known = {row.key for row in table.open(file).rows} if shards else set()
    for shard in shards:
        for row in table.rows_of(shard):
            if row.key not in known:
                append(file, row)
                known.add(row.key)


def append(file: Path, row: Row) -> None:
    """Add a row; once this returns, a kill does not lose it."""
    append_line(file, json.dumps(dataclasses.asdict(row)))


def _row(line: str, where: str) -> Row:
    try:
        data = json.loads(line)
        values = {name: float(value) for name, value in data["values"].items()}
        layers, bits, r = tuple(data["layers"]), data["bits"], data["range"]
        plain = (
            all(type(path) is str for path in layers) and type(bits) is int and type(r) in (int, type(None))
        )
        if not plain or not all(map(math.isfinite, values.values())):
            raise ValueError("no such row was measured")
        return Row(layers, bits, values, r)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: {line[:80]!r}; delete the file and search again.") from error
