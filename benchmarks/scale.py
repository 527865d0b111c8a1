"""Generation on many devices, in many processes, and killed: the same pictures, byte for byte.

    python -m benchmarks.scale --count 1000 --kills 20 --record benchmarks/records/scale-image.json

Quantizes the packaged model to w8a8, then makes the same pictures by `viditq generate` on one, two and four
forced host devices and in two processes, and once more in a run that is killed with SIGKILL again and again
and goes on with another number of devices each time. Host devices share the cores of one CPU, so their rates
beside the plain loop tell what the division costs, and nothing of what more devices bring.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import device_text
from viditq_jax.checkpoint import versions
from viditq_jax.conditions import packaged_prompts
from viditq_jax.files import write_json
from viditq_jax.load import load_pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quant.recipe import load_recipe

DEVICES = (1, 2, 4)
_LOOP = """
import json, sys, time
from viditq_jax.load import load_pipeline
model, prompts, count, batch, steps = json.loads(sys.argv[1])
pipeline = load_pipeline(model)
def make(first):
    pipeline([prompts[(first + i) % len(prompts)] for i in range(batch)], first=first, steps=steps)
make(0)
started = time.perf_counter()
for first in range(batch, count, batch):
    make(first)
print((count - batch) / (time.perf_counter() - started))
"""


def command(model: Path, out: Path, prompts: Path, *, count: int, batch: int, steps: int) -> list[str]:
    """The command line of a run."""
    flags = {"model": model, "out": out, "prompts": prompts, "num": count, "batch": batch, "steps": steps}
    pairs = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    return [
        sys.executable,
        "-c",
        "import sys; from viditq_jax.cli import main; sys.exit(main())",
        "generate",
        *pairs,
    ]


def environment(devices: int) -> dict[str, str]:
    """That gives a process so many host devices, beside the flags that are set."""
    kept = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    flags = [*kept, f"--xla_force_host_platform_device_count={devices}"]
    return {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}


def pictures(out: Path) -> str:
    """A sha256 of all pictures and of the manifest."""
    digest = hashlib.sha256()
    for file in sorted([*out.glob("*.png"), out / "manifest.jsonl"]):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def rate(out: Path, batch: int) -> float:
    """Pictures a second from the end of the first batch on, by the times of the files."""
    times = sorted(file.stat().st_mtime for file in out.glob("*.png"))
    return (len(times) - batch) / (times[-1] - times[batch - 1])


def finish(commands: Sequence[list[str]], devices: int) -> None:
    """Run them side by side. Raises RuntimeError with what the first that failed said."""
    started = [
        subprocess.Popen(each, env=environment(devices), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for each in commands
    ]
    said = [process.communicate()[1] for process in started]
    for process, command, text in zip(started, commands, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {text.decode()[-500:]}")


def killed(
    run: list[str], out: Path, kills: int, count: int, devices: Sequence[int], pause_s: float
) -> list[int]:
    """Pictures that were listed at each kill: at random, and each further on than the one before.

    pause_s: longest from when so many are listed to the kill, which then falls into whatever is done.
    """
    dice = random.Random(0)
    listed = []
    for k in range(kills):
        some = dice.choice(devices)
        process = subprocess.Popen(
            [*run, "--mesh", str(some), "1"],
            env=environment(some),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        goal = dice.randint(k * count // (kills + 1), (k + 1) * count // (kills + 1))
        while _listed(out) <= goal and process.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.random() * pause_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
        listed.append(_listed(out))
    return listed


def _listed(out: Path) -> int:
    file = out / "manifest.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def measure(
    model: Path,
    prompts: Sequence[str],
    folder: Path,
    *,
    count: int,
    kills: int,
    batch: int,
    steps: int,
    devices: Sequence[int] = DEVICES,
    pause_s: float = 0.2,
) -> dict[str, Any]:
    """All runs, in `folder`; the record. Raises RuntimeError where any picture differs."""
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts) + "\n", encoding="utf-8")

    def run(name: str) -> list[str]:
        return command(model, folder / name, file, count=count, batch=batch, steps=steps)

    rows, hashes = [], {}
    for many in devices:
        name = f"{many} devices"
        finish([[*run(name), "--mesh", str(many), "1"]], many)
        rows.append({"run": name, "pictures_per_s": rate(folder / name, batch * many)})
        hashes[name] = pictures(folder / name)
    name = "2 processes"
    finish([[*run(name), "--shard", str(i), "2"] for i in (0, 1)], 1)
    rows.append({"run": name, "pictures_per_s": rate(folder / name, 2 * batch)})
    hashes[name] = pictures(folder / name)
    name = "killed"
    listed = killed(run(name), folder / name, kills, count, devices, pause_s)
    finish([run(name)], 1)
    hashes[name] = pictures(folder / name)
    if differ := [name for name, value in hashes.items() if value != hashes["1 devices"]]:
        raise RuntimeError(f"the pictures of {', '.join(differ)} are not those of one device.")
    return {
        "count": count,
        "batch": batch,
        "steps": steps,
        "sha256": hashes["1 devices"],
        "runs": rows,
        "kills": len(listed),
        "listed_at_kill": listed,
    }


def plain_loop(model: Path, prompts: Sequence[str], *, count: int, batch: int, steps: int) -> float:
    """Pictures a second where a pipeline is called batch by batch, and nothing is written."""
    given = json.dumps([str(model), list(prompts), count, batch, steps])
    loop = subprocess.run(
        [sys.executable, "-c", _LOOP, given], env=environment(1), capture_output=True, text=True, check=True
    )
    return float(loop.stdout.splitlines()[-1])


def main() -> None:
    """Measure on the packaged model, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="pictures of each run (default: %(default)s)")
    parser.add_argument(
        "--kills", type=int, default=20, help="how often one run is killed (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="pictures a device computes together")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default: %(default)s)")
    parser.add_argument("--record", type=Path, default=Path("runs/scale.json"), help="where the figures go")
    options = parser.parse_args()
    sizes = {"count": options.count, "batch": options.batch, "steps": options.steps}
    with TemporaryDirectory() as folder:
        model = quantize_pipeline(load_pipeline(), load_recipe("w8a8")).save(Path(folder) / "w8a8")
        record = measure(model, packaged_prompts(), Path(folder), kills=options.kills, **sizes)
        plain = plain_loop(model, packaged_prompts(), **sizes)
    runs = [{**row, "ratio_vs_plain_loop": row["pictures_per_s"] / plain} for row in record.pop("runs")]
    about = {"model": "default", "recipe": "w8a8", "device": device_text()}
    record = {**about, **record, "plain_loop_pictures_per_s": plain, "runs": runs}
    record |= {"date": datetime.now(UTC).date().isoformat(), "versions": versions()}
    write_json(options.record, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
