"""How long `viditq generate` takes to its first picture, with and without compiled programs on disk.

    python -m benchmarks.start --record benchmarks/records/start.json

Every start is a process of its own, watched from its command line until its first two batches are there. The
first start finds an empty folder of programs, the second finds what the first left in it. All pictures of a
batch are done at once, so both have a whole batch to compute before the first: what the second batch takes.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.machine import device_text
from viditq_jax.checkpoint import versions
from viditq_jax.conditions import packaged_prompts
from viditq_jax.files import write_atomic, write_json
from viditq_jax.load import load_pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quant.recipe import load_recipe

NUM = 64
_POLL_S = 0.005


class Start(NamedTuple):
    """Seconds from the command line to the first picture, and what a batch takes later on."""

    first_s: float
    batch_s: float


def start(model: str, prompts: Path, out: Path, programs: Path, flags: Sequence[str], batch: int) -> Start:
    """One start, with compiled programs under `programs`; it is killed after two batches.

    Raises RuntimeError, with what the command said, where it ends before.
    """
    line = "import sys; from viditq_jax.cli import main; sys.exit(main())"
    given = {"model": model, "prompts": prompts, "out": out, "num": NUM, "batch": batch}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-c", line, "generate", *words, *flags]
    begun = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**os.environ, "XDG_CACHE_HOME": str(programs)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            made = [_when(out / f"{i:05}.png", process) for i in (0, batch - 1, 2 * batch - 1)]
        finally:
            process.kill()
    return Start(made[0] - begun, made[2] - made[1])


def _when(file: Path, process: subprocess.Popen[bytes]) -> float:
    while not file.is_file():
        if process.poll() is not None:
            said = process.communicate()[1].decode()[-500:]
            raise RuntimeError(f"{process.args!r} ended before {file.name}: {said}")
        time.sleep(_POLL_S)
    return time.perf_counter()


def measure(
    model: str, prompts: Sequence[str], *, batch: int, repeats: int, flags: Sequence[str] = ()
) -> dict[str, Any]:
    """First and second starts in turn; medians, and every start."""
    first: list[Start] = []
    second: list[Start] = []
    for _ in range(repeats):
        with TemporaryDirectory() as folder:
            place = Path(folder)
            write_atomic(place / "prompts.txt", "\n".join(prompts) + "\n")
            for name, starts in (("first", first), ("second", second)):
                starts.append(
                    start(model, place / "prompts.txt", place / name, place / "programs", flags, batch)
                )
    first_s = statistics.median(each.first_s for each in first)
    second_s = statistics.median(each.first_s for each in second)
    batch_s = statistics.median(each.batch_s for each in second)
    return {
        "batch": batch,
        "first_s": first_s,
        "second_s": second_s,
        "batch_s": batch_s,
        "ratio": first_s / second_s,
        "ratio_before_sampling": (first_s - batch_s) / (second_s - batch_s),
        "first_starts": [each._asdict() for each in first],
        "second_starts": [each._asdict() for each in second],
    }


def main() -> None:
    """Measure the packaged models, float and quantized, for pictures and videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="starts of each kind")
    parser.add_argument("--record", type=Path, help="write what was measured as JSON")
    options = parser.parse_args()
    record: dict[str, Any] = {
        "what": f"viditq generate --prompts FILE --num {NUM}: seconds to the first picture",
        "date": datetime.now(UTC).date().isoformat(),
        "device": device_text(),
        "versions": versions(),
        "repeats": options.repeats,
        "starts": {},
    }
    pictures, videos = packaged_prompts(), packaged_prompts("default-video")
    with TemporaryDirectory() as folder:
        quantize_pipeline(load_pipeline(), load_recipe("w8a8")).save(Path(folder) / "w8a8")
        cases = {
            "default": ("default", pictures, 8),
            "default, one at a time": ("default", pictures, 1),
            "default in w8a8, an artifact": (str(Path(folder) / "w8a8"), pictures, 8),
            "default-video": ("default-video", videos, 1),
        }
        for name, (model, prompts, batch) in cases.items():
            found = measure(model, prompts, batch=batch, repeats=options.repeats)
            record["starts"][name] = found
            print(
                f"{name}: {found['first_s']:.1f} s, then {found['second_s']:.1f} s ({found['ratio']:.1f}x), "
                f"{found['batch_s']:.1f} s of them a batch",
                flush=True,
            )
    if options.record:
        write_json(options.record, record)


if __name__ == "__main__":
    main()
