"""What programs write and read again: statistics, manifests, tables of a search, run folders."""

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests import tiny, toy_runs
from tests.hostile.door import table, written
from viditq_jax.calibrate import check_stats_file, load_stats
from viditq_jax.evaluate import evaluate
from viditq_jax.generate import Manifest, generate
from viditq_jax.quant.recipe import load_recipe
from viditq_jax.quant.search.table import Table
from viditq_jax.quant.stats import LayerStats
from viditq_jax.report import write_report
from viditq_jax.report.search import search_section


def stats(metadata: Any = None, **change: Any) -> Callable[[Path], Any]:
    """A file of statistics with some of its arrays replaced, or left out where they are None."""

    def make(folder: Path) -> None:
        layer = LayerStats.empty(4)
        arrays = {
            f"fc1|{name}": np.asarray(getattr(layer, name))
            for name in ("low", "high", "total", "count", "initial")
        }
        arrays |= {
            f"fc1|moving.{name}": np.asarray(getattr(layer.moving, name))
            for name in ("first", "sum", "calls")
        }
        changed = {**arrays, **{f"fc1|{name}": value for name, value in change.items()}}
        facts = json.dumps({"done": 1, "conditions": ["a"]}) if metadata is None else metadata
        save_file({name: a for name, a in changed.items() if a is not None}, folder / "s", {"facts": facts})

    return make


CASES = table(
    "statistics",
    lambda folder, out: check_stats_file(
        load_stats(folder / "s")[1], tiny.pipeline(depth=1), load_recipe("w8a8")
    ),
    {
        "a pickle": (written("s", b"\x80\4cos\nsystem\n."), "is no file of statistics"),
        "a header of 2**63": (written("s", struct.pack("<Q", 2**63) + b"{}"), "is no file of statistics"),
        "no facts": (
            lambda f: save_file({"a|low": np.zeros(1)}, f / "s"),
            "is no file of statistics .*facts",
        ),
        "facts nested deeply": (stats("[" * 100_000), "is no file of statistics"),
        "facts that are a number": (stats("3"), "its facts are no object"),
        "conditions that are a number": (
            stats('{"done": 1, "conditions": 1}'),
            "no object that lists conditions",
        ),
        "a tensor of no layer": (stats(**{"low": None}), "is no file of statistics"),
        "arrays of another shape": (stats(high=np.zeros((2, 3), np.float32)), "do not fit together"),
        "arrays of whole numbers": (stats(high=np.zeros((1, 4), np.int32)), "int32 and not float32"),
        "a number for an array": (stats(count=np.zeros((), np.float32)), "is no file of statistics"),
        "another model": (stats(), "of another ranges and weights"),
    },
)

PIXELS = np.zeros((4, 4, 3), np.uint8)


def png(width: int = 4, height: int = 4) -> bytes:
    """A black picture; or one that only says how large it is."""
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def manifest(
    content: bytes | None = None, lines: int = 1, settings: Any = None, **change: Any
) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        data = png() if content is None else content
        (folder / "0.png").write_bytes(data)
        entry = {"index": 0, "condition": "a", "file": "0.png", "sha256": hashlib.sha256(data).hexdigest()}
        text = json.dumps({key: value for key, value in {**entry, **change}.items() if value is not ...})
        (folder / "manifest.jsonl").write_text(f"{text}\n" * lines)
        (folder / "generation.json").write_text(json.dumps({"seed": 0} if settings is None else settings))

    return make


def lines_of(content: bytes) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        manifest()(folder)
        (folder / "manifest.jsonl").write_bytes(content)

    return make


DAMAGED = "manifest.jsonl line 1 is damaged"
CASES += table(
    "manifest",
    lambda folder, out: evaluate(folder, ("psnr",), reference=folder) and Manifest.read(folder).images(),
    {
        "no JSON": (lines_of(b"{\n"), DAMAGED),
        "no text": (lines_of(b"\xff\xfe\n"), DAMAGED),
        "deep nesting": (lines_of(b"[" * 100_000 + b"\n"), DAMAGED),
        "a number of 10,000 digits": (lines_of(b'{"index": ' + b"9" * 10_000 + b"}\n"), DAMAGED),
        "a file outside": (manifest(file="../0.png"), DAMAGED),
        "a file by an absolute path": (manifest(file="/etc/passwd"), DAMAGED),
        "a file of signs for the terminal": (manifest(file="\x1b[2J.png"), DAMAGED),
        "a video outside": (manifest(video="../../x.mp4", frames=1), DAMAGED),
        "no hash": (manifest(sha256=...), DAMAGED),
        "a negative index": (manifest(index=-1), DAMAGED),
        "an index that is a float": (manifest(index=0.0), DAMAGED),
        "no frames": (manifest(video="0.mp4", frames=0), DAMAGED),
        "a sample twice": (manifest(lines=2), "lists sample 0 twice"),
        "a video among pictures": (manifest(video="0.mp4", frames=2), "are not of one run"),
        "a rate that is text": (
            manifest(video="0.mp4", frames=2, settings={"seed": 0, "fps": "8;rm"}),
            "not of one run",
        ),
        "settings that are a list": (manifest(settings=[]), "holds no settings"),
        "settings without a seed": (manifest(settings={}), "generation.json holds no seed"),
        "a picture that is none": (manifest(b"\x89PNG\r\n\x1a\n"), "0.png is no picture that can be read"),
        "a picture of 2**60 pixels": (manifest(png(2**30, 2**30)), "0.png is no picture that can be read"),
        "another picture": (manifest(sha256="0" * 64), "0.png is missing or altered"),
    },
)

CASES += table(
    "generate into",
    lambda folder, out: generate(tiny.pipeline(depth=1), ["a red apple"], folder),
    {
        "pictures of somebody": (
            written("precious.png", b"mine"),
            "holds precious.png, but no generation.json",
        ),
        "settings nested deeply": (written("generation.json", "[" * 100_000), "generation.json is damaged"),
        "settings of another run": (manifest(), "was made with another"),
    },
)


def rows(*lines: str, **change: Any) -> Callable[[Path], Any]:
    """A table of a search: the line of settings with some changed, then these lines."""
    layers = {"blocks/0/fc1": {"numbers": 1, "group": "visual", "bytes": {"4": 1, "8": 2}}}
    rules = {"rules": [{"match": "*", "weight": "int8/channel"}]}
    head = {"recipe": rules, "bits": [4, 8], "bounds": [], "layers": layers, "facts": {}, **change}
    return written("t.jsonl", "".join(f"{line}\n" for line in (json.dumps(head), *lines)))


ROW = '{"layers": ["blocks/0/fc1"], "bits": 4, "range": null, "values": {"latent": 1}}'
NO_TABLE, NO_ROW = "t.jsonl is no table of a search", "t.jsonl line 2 is damaged"
CASES += table(
    "table",
    lambda folder, out: Table.read(folder / "t.jsonl"),
    {
        "nothing": (written("t.jsonl", ""), NO_TABLE),
        "no JSON": (written("t.jsonl", "{\n"), NO_TABLE),
        "no text": (written("t.jsonl", b"\xff\n"), "t.jsonl line 1 is damaged: no text"),
        "deep nesting": (written("t.jsonl", "[" * 100_000 + "\n"), NO_TABLE),
        "an impossible recipe": (rows(recipe={"rules": []}), NO_TABLE),
        "layers that are a list": (rows(layers=[1]), NO_TABLE),
        "sizes that are infinite": (
            written("t.jsonl", '{"layers": {"a": {"numbers": Infinity, "group": "", "bytes": {}}}}\n'),
            NO_TABLE,
        ),
        "a row nested deeply": (rows("[" * 100_000), NO_ROW),
        "a row of NaN": (rows(ROW.replace("1}", "NaN}")), NO_ROW),
        "a row of infinite bits": (rows(ROW.replace("4,", "Infinity,")), NO_ROW),
        "a row for a list of ranges": (rows(ROW.replace("null", "[0]")), NO_ROW),
    },
)


def run(record: Any = None, **change: Any) -> Callable[[Path], Any]:
    """A run folder of one variant, with some of its record changed."""

    def make(folder: Path) -> None:
        (folder / "run/pictures").mkdir(parents=True)
        manifest()(folder / "run/pictures")
        manifest()(folder)  # what lies outside
        variant = {"pictures": "pictures", "psnr_db": 1.0, "ssim": 1.0, **change}
        content = {"variants": {"float": variant}} if record is None else record
        (folder / "run/metrics.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return make


CASES += table(
    "report",
    lambda folder, out: write_report(folder / "run"),
    {
        "deep nesting": (run("[" * 100_000), "run is damaged"),
        "no variants": (run({}), "run is damaged"),
        "pictures outside": (run(pictures=".."), "which lies outside; refused"),
        "pictures of the system": (run(pictures="/etc"), "which lies outside; refused"),
    },
)


def searched(**change: Any) -> Callable[[Path], Any]:
    """The record of a search with some of it changed, or left out where it is None."""

    def make(folder: Path) -> None:
        record = json.loads((toy_runs.search(folder) / "search.json").read_text())
        changed = {name: value for name, value in {**record, **change}.items() if value is not None}
        (folder / "search.json").write_text(json.dumps(changed))

    return make


NO_SEARCH = "search.json is damaged .*; search again"
CASES += table(
    "record of a search",
    lambda folder, out: search_section(folder),
    {
        "none": (lambda folder: None, "has no search.json"),
        "a list": (written("search.json", "[]"), NO_SEARCH),
        "deep nesting": (written("search.json", "[" * 100_000), NO_SEARCH),
        "no text": (written("search.json", b"\xff\xfe"), NO_SEARCH),
        "no plans": (searched(plans=None), NO_SEARCH),
        "a plan without figures": (searched(plans=[{"plan": "milp"}]), NO_SEARCH),
        "a budget that is text": (searched(budget="<script>"), NO_SEARCH),
        "a million layers": (
            searched(sensitivities=[{"layers": ["a"] * 1_000_000}]),
            "measured 1000000 layers",
        ),
        "a layer that was not measured": (searched(plan_bits={"../x": 8}), NO_SEARCH),
        "no bits": (searched(bits=[]), NO_SEARCH),
    },
)
