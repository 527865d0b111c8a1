"""How fast ops are on this device: what `viditq bench --tune` measured, in `tuned/<device>.json`.

Speeds choose between implementations where none is named, and say which layers a model would run slower than
in floats. A shape that was not measured takes the nearest that was, in proportion; one that is far from all
is unknown, and so is every shape on another device, or on another CPU.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pallas_kernels import tuning

FAR = 4.0  # times as many rows, columns or channels: a product then may be bound by something else
SIZES = {
    "quantize_rows": ("m", "k"),
    "hadamard": ("m", "k"),
    "scaled_matmul": ("m", "k", "n"),
    "packed_matmul": ("m", "k", "n"),
}
TRAITS = ("epilogue", "form", "block")
FLOATS = ("bfloat16", "float32")


class Speed(NamedTuple):
    """One shape of an op. seconds: of each implementation, and of the same in bfloat16 and in float32."""

    sizes: tuple[int, ...]
    traits: str  # what else the time depends on, as "epilogue=gelu"
    seconds: Mapping[str, float]


def speed(op: str, sizes: Iterable[int], traits: str | None = None) -> Speed | None:
    """What an op takes on this device, scaled from the nearest shape that was measured; None if none is near.

    sizes: as SIZES names them. traits: of shapes equally near, those with these traits come first.
    """
    wanted = tuple(sizes)
    near = [(distance(wanted, each.sizes), each.traits != traits, each) for each in speeds(op)]
    near = [each for each in near if each[0] <= math.log2(FAR)]
    if not near:
        return None
    found = min(near, key=lambda each: each[:2])[2]
    scale = math.prod(wanted) / math.prod(found.sizes)
    return Speed(wanted, found.traits, {name: scale * value for name, value in found.seconds.items()})


def distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Of two shapes: how often the size that differs most doubles from one to the other."""
    return max(abs(math.log2(x / y)) for x, y in zip(a, b, strict=True))


def fastest(op: str, args: tuple[Any, ...], implementations: Sequence[str]) -> str | None:
    """The implementation that was fastest of these near the sizes of these operands.

    None where the first of them was not timed: it is not ruled out by what is known of the others.
    """
    if op not in SIZES:
        return None
    sizes = args[0].shape if len(SIZES[op]) == 2 else (*args[0].shape, args[1].shape[0])
    if 0 in sizes or (found := speed(op, sizes)) is None:
        return None
    timed = {name: found.seconds[name] for name in implementations if name in found.seconds}
    return min(timed, key=timed.__getitem__) if implementations[0] in timed else None


@functools.cache
def speeds(op: str) -> tuple[Speed, ...]:
    """All shapes of an op that were measured on this device."""
    device = tuning.device_name()
    table = tuning.table(device)
    if device == "cpu" and table.get("name") != tuning.host_name():
        return ()
    held = table.get("speeds", {}).get(op, {"hashes": {}, "shapes": []})
    valid = {*FLOATS, *(name for name, digest in held["hashes"].items() if _is_current(op, name, digest))}
    found = []
    for shape in held["shapes"]:
        seconds = {name: value for name, value in shape["seconds"].items() if name in valid}
        found.append(Speed(tuple(shape["sizes"]), shape["traits"], seconds))
    return tuple(found)


def _is_current(op: str, implementation: str, digest: str) -> bool:
    """Whether the code is that which was timed."""
    try:
        return tuning.kernel_hash(op, implementation) == digest
    except LookupError:
        return False


def compact(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows of an ops record of `viditq bench` as a table keeps them: by op, the code and the shapes."""
    table: dict[str, Any] = {}
    shapes: dict[tuple[Any, ...], dict[str, float]] = {}  # the seconds of a shape, which the table holds too
    for row in rows:
        op, name = row["op"], row["implementation"]
        if op not in SIZES:
            continue
        held = table.setdefault(op, {"hashes": {}, "shapes": []})
        if name not in FLOATS:
            held["hashes"][name] = tuning.kernel_hash(op, name)
        traits = " ".join(f"{trait}={row[trait]}" for trait in TRAITS if trait in row)
        sizes = [row[size] for size in SIZES[op]]
        shape = (op, *sizes, traits)
        if shape not in shapes:
            shapes[shape] = {}
            held["shapes"].append({"sizes": sizes, "traits": traits, "seconds": shapes[shape]})
        shapes[shape][name] = row["median_s"]
    return table
