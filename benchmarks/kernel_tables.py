"""Write the tables of docs/kernels.md from the code and the records: python -m benchmarks.kernel_tables"""

import functools
import json
from pathlib import Path
from typing import Any

from pallas_kernels import devices, dispatch
from tests.machine_code.record import FOLDER, machine_code
from tests.machine_code.rows import ASSEMBLED, LIBRARIES, OPS, ROWS
from tests.machine_code.targets import TARGETS
from viditq_jax.report.markdown import markdown_table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "kernels.md"
TPU = devices.Tpu("TPU v5e")
PROCESSORS = {"vnni": "run, with AVX512-VNNI"}  # implementations that not every CPU has
Table = list[list[str]]
_SPILLS = {"spill_stores": "spill stores", "spill_loads": "loads", "loop_spills": "of them in the loop"}


def main() -> None:
    """Replace what stands between the marks."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """The page with the tables that code and records give now."""
    for name, content in (("support", support()), ("blocks", blocks()), ("kernels", kernels())):
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->\n")
        if not end:
            raise ValueError(f"the page lacks the marks of {name!r}: put them where the table belongs.")
        page = f"{before}{begin}{content}{end}{after}"
    return page


def support() -> str:
    """Op by implementation by device: run, interpreted, compiled only, or unsupported; then the reasons."""
    table = [
        ["op", "implementation", "CPU", *(f"{name}, {each.short}" for name, each in TARGETS.items()), "TPU"]
    ]
    reasons: dict[str, list[str]] = {}
    for op in OPS:
        on_cpu = next(row for row in ROWS if row.op == op).reasons()
        for name in dispatch.implementations(op):
            found = [_on_cpu(op, name, on_cpu[name])]
            found += [*(_on_gpu(op, name, target) for target in TARGETS), _on_tpu(op, name)]
            table.append([f"`{op}`", f"`{name}`", *(state for state, _ in found)])
            for device, (_, reason) in zip(("CPU", *TARGETS, "TPU"), found, strict=True):
                if reason:
                    reasons.setdefault(f"`{op}`/`{name}` {reason}", []).append(device)
    lines = [f"- {', '.join(devices)}: {reason}." for reason, devices in reasons.items()]
    return _lines(table) + "".join(f"{line}\n" for line in ["", *lines] if lines)


def blocks() -> str:
    """What a block of PixArt launches and moves, per target and recipe."""
    table = [["GPU", "recipe", "kernels", "moved, MB", "against bfloat16", "temporary, MB"]]
    for target in TARGETS:
        for recipe, found in machine_code(target)["blocks"].items():
            sizes = [f"{found[name] / 1e6:.0f}" for name in ("moved_bytes", "temporary_bytes")]
            ratio = f"{found['moved_vs_bfloat16']:.2f}x"
            table.append([target, f"`{recipe}`", str(found["kernels"]), sizes[0], ratio, sizes[1]])
    return _lines(table)


def kernels() -> str:
    """What each row launches and moves on Hopper, for which there are kernels of our own."""
    table = [["op and layer", "implementation", "kernels", "moved, MB", "registers", *_SPILLS.values()]]
    for name, found in machine_code("sm_90")["kernels"].items():
        implementation = name.split("/")[1].split()[0]
        case = name.replace(f"/{implementation}", "", 1)
        ours = [str(found.get(count, "")) for count in ("registers", *_SPILLS)]
        moved = f"{found['moved_bytes'] / 1e6:.1f}"
        table.append([case, f"`{implementation}`", str(found["kernels"]), moved, *ours])
    return _lines([table[0], *sorted(table[1:])])


def _on_cpu(op: str, name: str, reason: str | None) -> tuple[str, str | None]:
    """The tests run every case of what is supported; those of a kernel interpret it where that can be.

    The same on every machine that makes the tables.
    """
    if name in PROCESSORS:
        return PROCESSORS[name], None
    if reason is None:
        return "run", None
    tests = ROOT / "tests" / "pallas_kernels" / f"test_{op}_{name}.py"
    interpreted = tests.is_file() and "interpreted(" in tests.read_text(encoding="utf-8")
    return ("interpreted", None) if interpreted else ("unsupported", reason)


def _on_gpu(op: str, name: str, target: str) -> tuple[str, str | None]:
    if _was_run(op, name, target):
        return "run", None
    reason = machine_code(target)["reasons"][op][name]
    assembled = name not in LIBRARIES and target in ASSEMBLED.get(name, TARGETS)
    known = "compiled only" if assembled else "lowered only"
    return (known, None) if reason is None else ("unsupported", reason)


def _on_tpu(op: str, name: str) -> tuple[str, str | None]:
    """The tests lower for it what is supported."""
    reasons = [row[name] for row in _reasons_on_tpu(op)]
    return ("lowered only", None) if None in reasons else ("unsupported", reasons[0])


@functools.cache
def _reasons_on_tpu(op: str) -> list[dict[str, str | None]]:
    """Of all rows of an op, for a program that is not here to run."""
    with devices.tracing_for(TPU):
        return [row.reasons() for row in ROWS if row.op == op]


def _was_run(op: str, name: str, target: str) -> bool:
    """Whether a record of times on a device of this capability has the implementation."""
    capability = ".".join(map(str, TARGETS[target].capability))
    records: list[dict[str, Any]] = [json.loads(file.read_text()) for file in FOLDER.glob("ops-*.json")]
    return any(
        (row["op"], row["implementation"]) == (op, name)
        for record in records
        if record.get("compute_capability") == capability
        for row in record["rows"]
    )


def _lines(table: Table) -> str:
    return markdown_table(table[0], table[1:]) + "\n"


if __name__ == "__main__":
    main()
