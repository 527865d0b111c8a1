"""Artifacts that were torn, altered or made on purpose: some with hashes that are right again."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from tests.hostile.door import table
from tests.hostile.sealed_folder import SealedFolder
from viditq_jax import checkpoint
from viditq_jax.load import load_pipeline
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats

LAYER = "denoiser/blocks/0/mlp/fc1/weight/value"
RECIPE = Recipe(
    (
        Rule(
            ("blocks/0/mlp/fc1",),
            Spec.parse("int4/group32/asym"),
            Spec.parse("int8/tensor/static"),
            prepare=("balance:alpha=0.5",),
        ),
        Rule(("blocks/0/attn/proj",), Spec.parse("int8/channel"), Spec.parse("int8/token")),
    )
)


@cache
def pipeline() -> Pipeline:
    """A quantized denoiser alone, with every kind of scale: of groups, channels, inputs and a balance."""
    whole = tiny.pipeline(jnp.bfloat16, depth=1)
    facts = {
        key: value
        for key, value in whole.facts.items()
        if key not in ("decoder", "text_encoder", "tokenizer")
    }
    alone = dataclasses.replace(whole, facts=facts, decoder=None, text_encoder=None, files={})
    rows = jnp.asarray(np.random.default_rng(0).standard_normal((4, tiny.PIXART.width), np.float32))
    width = tiny.PIXART.width
    return tiny.quantized(alone, RECIPE, {"blocks/0/mlp/fc1": LayerStats.empty(width).update(rows)})


@cache
def artifact() -> Path:
    return pipeline().save(Path(mkdtemp()) / "artifact")


FOLDER = SealedFolder(artifact, checkpoint.KIND, "artifact")
altered, facts = FOLDER.altered, FOLDER.facts


def scale(field: str, value: float) -> Callable[[Path], Any]:
    """An artifact, saved as usual, of a weight of which the first number of a scale is this one."""

    def make(folder: Path) -> None:
        def change(path: str, weight: Any) -> Any:
            if path != "blocks/0/mlp/fc1":
                return weight
            leaves, tree = jax.tree_util.tree_flatten_with_path(weight)
            changed = [
                leaf.at[(0,) * leaf.ndim].set(value) if jax.tree_util.keystr(keys) == field else leaf
                for keys, leaf in leaves
            ]
            assert any(a is not b for a, (_, b) in zip(changed, leaves, strict=True)), field
            return jax.tree.unflatten(tree, changed)

        whole = pipeline()
        dataclasses.replace(whole, denoiser=whole.denoiser.map_weights(change)).save(folder / "artifact")

    return make


def edited(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """A JSON file of the artifact changed, its hashes with it."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return altered(edit, again=True)


def flipped(folder: Path) -> None:
    content = bytearray((folder / LAYER / "weight/values/0.0").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / LAYER / "weight/values/0.0").write_bytes(content)


def link(name: str, target: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def swapped(folder: Path) -> None:
    """The artifact is a file, or a pipe that nobody writes into."""
    (folder / "pipeline.json").unlink()
    os.mkfifo(folder / "pipeline.json")


ZARRAY = f"{LAYER}/weight/values/.zarray"
CHUNK = f"{LAYER}/weight/values/0.0"
NOT_SCALES = "are not finite and above zero"
NO_PIPELINE = "pipeline.json does not describe a pipeline"

CASES = table(
    "artifact",
    lambda folder, out: load_pipeline(folder / "artifact"),
    {
        "a flipped byte in a tensor": (altered(flipped), "weight/values/0.0 was altered"),
        "a missing tensor": (
            altered(lambda f: shutil.rmtree(f / LAYER / "weight/scale")),
            "scale/.zarray is missing",
        ),
        "an extra file": (
            altered(lambda f: (f / "denoiser/code.py").write_text("")),
            "code.py does not belong",
        ),
        "a truncated tensor": (altered(lambda f: os.truncate(f / CHUNK, 3)), "has 3 bytes instead of"),
        "a link to a file": (
            altered(link("denoiser/more", "/etc/passwd")),
            "denoiser/more is a symbolic link",
        ),
        "a link to a folder": (altered(link("more", "/etc"), again=True), "more is a symbolic link"),
        "a pipe for facts": (altered(swapped), "has no weights"),
        "facts that are no JSON": (
            altered(lambda f: (f / "pipeline.json").write_bytes(b"\xff\0")),
            "is not valid",
        ),
        "facts nested deeply": (
            altered(lambda f: (f / "pipeline.json").write_text("[" * 100_000)),
            "is not valid",
        ),
        "facts of 65 MB": (
            altered(lambda f: os.truncate(f / "pipeline.json", 65 << 20)),
            "no honest one has",
        ),
        "facts with another hash": (
            altered(
                lambda f: (f / "pipeline.json").write_text(
                    (f / "pipeline.json").read_text().replace("3.0", "9.0")
                )
            ),
            "pipeline.json was altered",
        ),
        "another format version": (
            facts(lambda x: x.update(format=2)),
            "has format version 2, this library reads 1",
        ),
        "a file outside": (
            facts(lambda x: x["files"].update({"../x": {"bytes": 0, "sha256": ""}})),
            "../x is missing",
        ),
        "a model outside": (
            facts(lambda x: x["denoiser"].update(model="../../os")),
            "there is no '../../os'",
        ),
        "a sampler outside": (facts(lambda x: x["sampler"].update(name="os.path")), "there is no 'os.path'"),
        "a tokenizer outside": (
            facts(lambda x: x.update(tokenizer={"file": "../../etc/passwd", "max_length": 12})),
            "is none of its files",
        ),
        "a billion blocks": (
            facts(lambda x: x["denoiser"]["config"].update(depth=10**9)),
            "files to hold it",
        ),
        "a width of 2**40": (
            facts(lambda x: x["denoiser"]["config"].update(width=2**40)),
            "expected bfloat16",
        ),
        "patches of no size": (facts(lambda x: x["denoiser"]["config"].update(patch_size=0)), NO_PIPELINE),
        "a billion steps": (facts(lambda x: x["sampler"].update(steps=10**9)), "100000 at most"),
        "a schedule of a billion": (
            facts(lambda x: x["sampler"]["options"].update(num_train_timesteps=10**9)),
            "100000 at most",
        ),
        "a guidance that is no number": (
            facts(lambda x: x["guidance"].update(scale=math.nan)),
            "scale of nan",
        ),
        "pictures of a billion pixels": (facts(lambda x: x.update(image_size=[10**9, 10**9])), "samples of"),
        "parameters of Python objects": (facts(lambda x: x.update(dtype="object")), "expected object"),
        "a recipe of 1,000 bits": (
            facts(lambda x: x["recipe"]["rules"][0].update(weight="int1000/channel")),
            "1000 bits; choose 2 to 8",
        ),
        "a recipe of 20,000 rules": (
            facts(lambda x: x["recipe"].update(rules=[{}] * 20_000)),
            "10000 at most",
        ),
        "a recipe for other layers": (
            facts(lambda x: x["recipe"]["rules"][0].update(match="nowhere")),
            "nowhere matches none",
        ),
        "a scale of another shape": (
            edited(f"{LAYER}/weight/scale/.zarray", lambda x: x.update(shape=[64, 1], chunks=[64, 1])),
            r"scale is float32\[64, 1\], expected float32\[128, 1\]",
        ),
        "a scale of another type": (
            edited(f"{LAYER}/weight/scale/.zarray", lambda x: x.update(dtype="<f8")),
            "expected float32",
        ),
        "a scale of NaN": (scale(".weight.scale", math.nan), f"fc1/weight/scale: 1 of 128 {NOT_SCALES}"),
        "a scale of infinity": (scale(".weight.scale", math.inf), NOT_SCALES),
        "a scale of zero": (scale(".weight.scale", 0.0), NOT_SCALES),
        "a negative scale": (scale(".weight.scale", -1.0), NOT_SCALES),
        "an input's scale of zero": (scale(".act_scale", 0.0), f"fc1/act_scale: 1 of 1 {NOT_SCALES}"),
        "a balance of zero": (scale(".prepare[0].scale", 0.0), f"prepare/0/scale: 1 of 32 {NOT_SCALES}"),
        "pieces of 2**36 bytes": (
            edited(ZARRAY, lambda x: x.update(chunks=[1 << 20, 1 << 16])),
            r"lies in pieces of \[1048576, 65536\]",
        ),
        "pieces that are no JSON": (
            altered(lambda f: (f / ZARRAY).write_text("[" * 100_000), again=True),
            "zarray is not valid",
        ),
        "a filter that unpickles": (
            edited(ZARRAY, lambda x: x.update(filters=[{"id": "pickle"}])),
            "not a tree of arrays",
        ),
        "a piece that is no zstd": (
            altered(lambda f: (f / CHUNK).write_bytes(b"garbage"), again=True),
            "cannot be read",
        ),
        "no piece": (altered(lambda f: (f / CHUNK).unlink(), again=True), "cannot be read"),
        "a tree nested deeply": (
            altered(lambda f: (f / "denoiser/_METADATA").write_text("[" * 100_000), again=True),
            "is not a tree of arrays",
        ),
        "another format of arrays": (
            altered(lambda f: (f / "denoiser/manifest.ocdbt").write_bytes(b""), again=True),
            "of a format that artifacts do not have",
        ),
    },
)
