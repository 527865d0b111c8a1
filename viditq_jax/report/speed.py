"""Records of `viditq bench` as tables: for a terminal, and for the README.

A folder of records holds ops-DEVICE.json and pipeline-DEVICE.json. What no record says is "not measured".
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from viditq_jax.report.markdown import markdown_table

NOT_MEASURED = "not measured"
_EXPECTED = {"cpu": "a CPU", "nvidia-h100-80gb-hbm3": "NVIDIA H100"}  # columns, with and without a record
_CASES = (  # of pipeline records, in this order, measured or not
    "pixart block, width 1152, 1024 tokens",
    "packaged model, batch 4, step",
    "packaged model, batch 4, pictures",
    "pixart-sigma-1024, batch 1, step",
    "pixart-sigma-1024, batch 4, step",
    "dit-xl-2-512, batch 16, step",
)
_RECIPES = ("bfloat16", "w8a8", "w8a8-dynamic", "w4a8")  # where nothing is measured
_LAYERS = ("pixart-sigma-512", "pixart-sigma-1024", "flux-like 1024")  # of ops records
_OPS = ("scaled_matmul", "packed_matmul", "quantize_rows")
_PRODUCTS = tuple(  # of ops records, measured or not
    (f"{model} {layer}", op)
    for model in _LAYERS[:2]
    for layer in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")
    for op in _OPS[:2]
)
_FLOATS = ("float32", "bfloat16")
_KINDS = ("matmul", "attention", "quantize", "elementwise", "other")  # as viditq_jax.bench.profile names them
_PROFILE = ("device", "what", "recipe", *_KINDS)

Record = Mapping[str, Any]


def summary(record: Record) -> str:
    """The rows of one record as lines, and what was left out."""
    lines = []
    for row in record["rows"]:
        what = f"{row['op']}, {row['case']}" if "op" in row else row["case"]
        who = row.get("implementation") or row.get("recipe")
        ratios = [f"{row[f'ratio_vs_{name}']:6.2f}x {name}" for name in _FLOATS if f"ratio_vs_{name}" in row]
        ceiling = f"  {row['fraction_of_ceiling']:.0%} of the ceiling" if "fraction_of_ceiling" in row else ""
        lines.append(f"{what:<66} {who:<24} {_seconds(row):>9}  {'  '.join(ratios)}{ceiling}")
    return "\n".join([*lines, *(f"left out: {name}: {why}" for name, why in record["left_out"].items())])


def speed_tables(folder: str | Path) -> str:
    """The speed section of the README, from the records in a folder."""
    pipelines, ops = (_read(Path(folder), kind) for kind in ("pipeline", "ops"))
    known = {**ops, **pipelines}
    devices = [*_EXPECTED, *sorted(known.keys() - _EXPECTED.keys())]
    profiles = _profile_rows(pipelines, devices)
    return "\n\n".join(
        [
            _provenance(known, devices),
            _table(("what", "recipe"), _pipeline_rows(pipelines, devices), known, devices),
            *(
                ["Where the time goes, by the profiler:", markdown_table(_PROFILE, profiles)]
                if profiles
                else []
            ),
            "Single layers, the fastest implementation of each: the time, how many times as fast as jitted "
            "floats, and the share of what the device reaches at best (a large product, a large copy).",
            _table(("layer", "op"), _ops_rows(ops, devices), known, devices),
        ]
    )


def insert(text: str, tables: str, name: str = "speed") -> str:
    """The text with the tables between the two marks of this name. Raises ValueError if it lacks them."""
    first, last = f"<!-- {name}: written by benchmarks/readme.py -->", f"<!-- end of {name} -->"
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the text lacks the lines {first!r} and {last!r}; add them where the tables go.")
    return f"{before}{first}\n\n{tables}\n\n{last}{after}"


def _read(folder: Path, kind: str) -> dict[str, Record]:
    files = sorted(folder.glob(f"{kind}-*.json"))
    records = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    return {record["device"]: record for record in records}


def _provenance(records: Mapping[str, Record], devices: Sequence[str]) -> str:
    lines = []
    for device in devices:
        if (record := records.get(device)) is None:
            lines.append(f"- {_EXPECTED[device]}: {NOT_MEASURED}.")
            continue
        cores = f", {record['cores']} cores" if record["platform"] == "cpu" else ""
        peaks = ", ".join(
            f"{name} {record['ceilings'][f'{name}_flop_per_s'] / 1e12:.3g}"
            for name in ("bfloat16", "float32", "int8")
        )
        copy = f"copy {record['ceilings']['copy_bytes_per_s'] / 1e9:.3g} GB/s"
        made = f"jax {record['versions']['jax']}, {record['date'][:10]}"
        made += ", a quick run" if record["settings"]["quick"] else ""
        lines.append(f"- {record['name']}{cores}: {made}. Ceilings: {peaks} Tflop/s, {copy}.")
    return "\n".join(lines)


def _table(
    head: tuple[str, str],
    rows: Sequence[Sequence[str]],
    records: Mapping[str, Record],
    devices: Sequence[str],
) -> str:
    names = [_EXPECTED.get(device) or records[device]["name"] for device in devices]
    return markdown_table([*head, *names], rows)


def _pipeline_rows(records: Mapping[str, Record], devices: Sequence[str]) -> list[list[str]]:
    table = []
    for case in _CASES:
        found = {
            device: {row["recipe"]: row for row in record["rows"] if row["case"] == case}
            for device, record in records.items()
        }
        names = dict.fromkeys(name for rows in found.values() for name in rows) or dict.fromkeys(_RECIPES)
        for name in names:
            cells = [_cell(found.get(device, {}).get(name)) for device in devices]
            table.append([case, name if name in _FLOATS else f"`{name}`", *cells])
    return table


def _profile_rows(records: Mapping[str, Record], devices: Sequence[str]) -> list[list[str]]:
    """A line for each profile of a step or a block."""
    return [
        [records[device]["name"], row["case"], row["recipe"], *(f"{share:.0%}" for share in shares)]
        for device in devices
        if device in records
        for row in records[device]["rows"]
        if (shares := [row["profile"][kind] for kind in _KINDS] if row.get("profile") else [])
    ]


def _ops_rows(records: Mapping[str, Record], devices: Sequence[str]) -> list[list[str]]:
    best: dict[tuple[str, str], dict[str, Any]] = {key: {} for key in _PRODUCTS}
    for device, record in records.items():
        for row in record["rows"]:
            if (
                row["implementation"] in _FLOATS
                or row["op"] not in _OPS
                or not row["case"].startswith(_LAYERS)
            ):
                continue
            held = best.setdefault((row["case"], row["op"]), {})
            if device not in held or row["median_s"] < held[device]["median_s"]:
                held[device] = row
    return [
        [case, f"`{op}`", *(_ops_cell(held.get(device)) for device in devices)]
        for (case, op), held in best.items()
    ]


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOT_MEASURED
    rate = f" ({row['images_per_second']:.3g} images/s)" if "images_per_second" in row else ""
    return f"{_seconds(row)}{rate}{_ratios(row, row['recipe'])}"


def _ops_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOT_MEASURED
    share = f"{row['fraction_of_ceiling']:.0%} of the ceiling"
    return f"{_seconds(row)}{_ratios(row, '')}, {share} ({row['implementation']}, {row['m']} rows)"


def _ratios(row: Mapping[str, Any], name: str) -> str:
    held = [
        f"{row[key]:.2f}x {each}" for each in _FLOATS if (key := f"ratio_vs_{each}") in row and each != name
    ]
    return f": {', '.join(held)}" if held else ""


def _seconds(row: Mapping[str, Any]) -> str:
    s = row["median_s"]
    return f"{s:.3g} s" if s >= 1 else f"{1e3 * s:.3g} ms" if s >= 1e-3 else f"{1e6 * s:.3g} us"
