"""Kill what writes, at random moments, and start it again: python -m tests.kill_trials --kills 100

Each trial is a process that saves, exports, calibrates, searches or generates with a tiny model, and that
SIGKILL ends: by the clock, anywhere in its work, or at one of its file operations. What then lies there must
not be damaged; after one to four kills in a row the process runs through, and must give what it gives
undisturbed.

Processes are forked from this one, which has imported everything and computed nothing: JAX does not survive
a fork once it has a device. They share compiled programs by a cache on disk.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import safetensors.numpy
from jax._src import xla_bridge

from tests import tiny
from viditq_jax import load_recipe, sealed
from viditq_jax.calibrate import calibrate
from viditq_jax.checkpoint import read_facts, versions
from viditq_jax.export import export_pipeline
from viditq_jax.export._folder import KIND
from viditq_jax.files import write_json
from viditq_jax.generate import Manifest, generate
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.search.table import Table
from viditq_jax.quant.spec import Spec
from viditq_jax.search import search

PROMPTS = ["a red apple", "two blue dogs", "gold", "cat face"]
PLAIN = Recipe(
    (Rule(("blocks/*",), Spec.parse("int4/channel/asym"), Spec.parse("int8/token")),), name="plain"
)
MOST_IN_A_ROW = 4  # kills before a run that goes through
_OPERATIONS = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """run: writes into a folder. check: raises if what lies there, at any moment, is damaged. result: what a
    finished run has made, without what names a time.
    """

    run: Callable[[Pipeline, Path], Any]
    check: Callable[[Path], None]
    result: Callable[[Path], Any]
    before: Callable[[Pipeline, Path], Any] = lambda pipeline, folder: None


def pipeline() -> Pipeline:
    """The tiny pipeline of one block and two steps."""
    whole = tiny.pipeline(depth=1)
    return dataclasses.replace(
        whole, facts={**whole.facts, "sampler": {**whole.facts["sampler"], "steps": 2}}
    )


def artifact(folder: Path) -> dict[str, Any]:
    """What an artifact says of its source, and the hashes of its arrays; all of its files are checked."""
    facts = read_facts(folder / "artifact")
    return {
        "source": facts["source"],
        **{name: each for name, each in facts["files"].items() if "/value" in name},
    }


def statistics(folder: Path) -> Any:
    """The arrays and facts of the file, if it is there."""
    file = folder / "s.safetensors"
    if not file.exists():
        return None
    with safetensors.safe_open(file, framework="numpy") as opened:
        facts = json.loads(opened.metadata()["facts"])
    arrays = safetensors.numpy.load_file(file)
    assert 1 <= facts["done"] <= len(PROMPTS)
    return facts, {name: arrays[name].tobytes() for name in sorted(arrays)}


def table(folder: Path) -> None:
    """Every whole line is a row, and what else is there is whole."""
    if (folder / "table.jsonl").exists() and b"\n" in (folder / "table.jsonl").read_bytes():
        Table.read(folder / "table.jsonl")
    for name in ("plan.json", "search.json"):
        if (folder / name).exists():
            json.loads((folder / name).read_text())


def pictures(folder: Path) -> Any:
    """Hashes of all pictures, each of which is checked, if there are any."""
    if not (folder / "generation.json").exists():
        return None
    manifest = Manifest.read(folder)
    assert len(manifest.images()) == len(manifest.entries)
    return manifest.entries


def found(folder: Path) -> Any:
    """The table and the plan of a finished search."""
    record = json.loads((folder / "search.json").read_text())
    return (folder / "table.jsonl").read_text(), (folder / "plan.json").read_text(), record["plan_bits"]


def programs(folder: Path) -> Any:
    """What the exported programs say of their pipeline and take and give, and the hashes of the weights; all
    files are checked. How a program is written down depends on what its process traced before.
    """
    facts = sealed.read(folder / "exported", KIND)
    weights = {name: each for name, each in facts["files"].items() if name.startswith("weights/")}
    return facts["pipeline"]["source"], facts["programs"], sorted(facts["files"]), weights


def older(pipeline: Pipeline) -> Pipeline:
    """Another one, which lies there already: it or the new one is there at every moment."""
    source = {"denoiser": {"format": "original", "file": "old"}}
    return dataclasses.replace(pipeline, facts={**pipeline.facts, "source": source})


COMMANDS = {
    "save": Command(
        lambda pipeline, folder: pipeline.save(folder / "artifact", overwrite=True),
        lambda folder: [artifact(folder), None][1],
        artifact,
        before=lambda pipeline, folder: older(pipeline).save(folder / "artifact"),
    ),
    "export": Command(
        lambda pipeline, folder: export_pipeline(pipeline, folder / "exported", overwrite=True),
        lambda folder: [programs(folder), None][1],
        programs,
        before=lambda pipeline, folder: export_pipeline(older(pipeline), folder / "exported"),
    ),
    "calibrate": Command(
        lambda pipeline, folder: calibrate(
            pipeline, PROMPTS, load_recipe("naive-static-w8a8"), batch=1, file=folder / "s.safetensors"
        ),
        lambda folder: [statistics(folder), None][1],
        statistics,
    ),
    "search": Command(
        lambda pipeline, folder: search(
            pipeline, PLAIN, folder, budget=5, conditions=PROMPTS[:2], judges=PROMPTS[2:], batch=2
        ),
        table,
        found,
    ),
    "generate": Command(
        lambda pipeline, folder: generate(pipeline, PROMPTS, folder, batch=1),
        lambda folder: [pictures(folder), None][1],
        pictures,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the trials, and write the record; 0 if nothing was damaged."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="in all (default: %(default)s)")
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), help="of which (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="the record, a JSON file")
    options = parser.parse_args(arguments)
    started, rng = time.monotonic(), random.Random(options.seed)
    record: dict[str, Any] = {
        "what": "SIGKILL at random moments, then the same command again",
        "commands": {},
    }
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX warns, see above
    jax.config.update("jax_platforms", "cpu")
    with TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", f"{folder}/programs")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        tiny.spiece_model()
        for i, name in enumerate(options.commands):
            count = options.kills * (i + 1) // len(options.commands) - options.kills * i // len(
                options.commands
            )
            record["commands"][name] = trials(name, count, Path(folder) / name, rng)
            print(f"{name}: {record['commands'][name]}", flush=True)
    record |= {
        "kills": sum(each["kills"] for each in record["commands"].values()),
        "damaged": sum(each["damaged"] for each in record["commands"].values()),
        "seed": options.seed,
        "seconds": round(time.monotonic() - started),
        "cores": os.cpu_count(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    if options.out:
        write_json(options.out, record)
    return int(record["damaged"] > 0)


def trials(name: str, kills: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    """Kill one command so many times. What was damaged is told on standard error, and counted."""
    command, counts = (
        COMMANDS[name],
        Counter(kills=0, by_clock=0, at_a_file_operation=0, runs_through=0, damaged=0),
    )
    _Child(name, folder / "wanted").wait()  # fills the cache of programs
    shutil.rmtree(folder / "wanted")
    whole = _Child(name, folder / "wanted")
    whole.wait()
    wanted = command.result(folder / "wanted")
    while counts["kills"] < kills:
        place = folder / f"trial-{counts['kills']}"
        for _ in range(min(rng.randint(1, MOST_IN_A_ROW), kills - counts["kills"])):
            if rng.random() < 0.5:
                child, how = _Child(name, place, seconds=rng.uniform(0, whole.seconds)), "by_clock"
            else:
                child, how = (
                    _Child(name, place, operation=rng.randint(1, whole.operations)),
                    "at_a_file_operation",
                )
            if child.wait():
                counts["kills"] += 1
                counts[how] += 1
            counts["damaged"] += _damaged(name, lambda: command.check(place))  # noqa: B023
        _Child(name, place).wait()
        counts["runs_through"] += 1
        counts["damaged"] += _damaged(name, lambda: _same(command.result(place), wanted))  # noqa: B023
        left = [path.name for path in place.rglob(".*.partial")]
        counts["damaged"] += _damaged(name, lambda: _same(left, []))  # noqa: B023
        shutil.rmtree(place)
    return dict(counts)


def _same(a: Any, b: Any) -> None:
    if a != b:
        raise AssertionError(f"{str(a)[:300]} instead of {str(b)[:300]}")


def _damaged(name: str, look: Callable[[], None]) -> bool:
    try:
        look()
    except Exception as error:  # whatever reading a damaged file raises
        print(f"{name}: DAMAGED: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return True
    return False


class _Child:
    """A process that runs a command into a folder, and ends itself, or is ended, where that is asked for.

    seconds: after which it is killed, counted from the begin of its work. operation: which of its file
    operations below the folder it does not live to do.
    """

    def __init__(
        self, name: str, folder: Path, *, seconds: float | None = None, operation: int | None = None
    ):
        assert not xla_bridge._backends, "JAX has a device already, and does not survive a fork"
        fresh = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        self._kill_after, self._read = seconds, 0
        self._read, write = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                _work(COMMANDS[name], folder, fresh, operation, write)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        os.close(write)
        self.seconds, self.operations = 0.0, 0

    def wait(self) -> bool:
        """Wait for its end, and bring it about where that was asked for; whether it was killed."""
        os.read(self._read, 1)  # it has begun
        started = time.monotonic()
        if self._kill_after is not None:
            time.sleep(self._kill_after)
            os.kill(self._pid, signal.SIGKILL)
        said = b"".join(iter(lambda: os.read(self._read, 100), b""))
        os.close(self._read)
        _, status = os.waitpid(self._pid, 0)
        self.seconds, self.operations = time.monotonic() - started, int(said or 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError("a run that was not killed failed; its error stands above.")
        return os.WIFSIGNALED(status)


def _work(command: Command, folder: Path, fresh: bool, operation: int | None, say: int) -> None:
    """What a child does: prepare, say so, run, and say how many file operations there were."""
    ready = pipeline()
    if fresh:
        command.before(ready, folder)
    numbers, seen = itertools.count(1), [0]

    def look(event: str, given: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and given and str(given[0]).startswith(str(folder)):
            seen[0] = next(numbers)
            if seen[0] == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    os.write(say, b"!")
    command.run(ready, folder)
    os.write(say, str(seen[0]).encode())


if __name__ == "__main__":
    sys.exit(main())
