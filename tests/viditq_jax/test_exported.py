"""Exported programs give what the pipeline gives, anywhere, and say at once where they do not fit."""

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests import tiny
from viditq_jax.cli import export as verb
from viditq_jax.export import ExportedPipeline, export_pipeline, load_exported
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.sealed import ArtifactError

ROOT = Path(__file__).parent.parent.parent
PROMPTS = ["a red apple", "cat face"]
INT4, INT8 = "blocks/*/mlp/*", "blocks/*/attn/*"
RECIPE = Recipe(
    (
        Rule(
            (INT4,), Spec.parse("int4/group32/asym"), Spec.parse("int8/token"), prepare=("hadamard:block=32",)
        ),
        Rule((INT8,), Spec.parse("int8/channel"), Spec.parse("int8/token")),
    ),
    name="both",
)
# What lies in the folder samples before a model is built; then the pipeline samples.
ELSEWHERE = """
import hashlib, sys
from viditq_jax.export import load_exported

OPTIONS = {"seed": 3}, {"seed": 4, "first": 2, "negative": "dogs", "guidance": 2.0}
_, program, artifact, *prompts = sys.argv

def sampled(from_):
    found = [from_.latents(prompts, **options) for options in OPTIONS]
    found.append(from_.decode(found[0]))
    return [hashlib.sha256(each.tobytes()).hexdigest() for each in found]

print(*sampled(load_exported(program)), sorted({"llvmlite", "torch", "triton"} & set(sys.modules)))

from viditq_jax.load import load_pipeline
print(*sampled(load_pipeline(artifact)))
"""


@pytest.fixture(scope="module")
def quantized() -> Pipeline:
    return tiny.quantized(tiny.pipeline(depth=1), RECIPE)


@pytest.fixture(scope="module")
def folder(quantized: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_pipeline(quantized, tmp_path_factory.mktemp("exported") / "program", batch=2)


@pytest.fixture(scope="module")
def program(folder: Path) -> ExportedPipeline:
    return load_exported(folder)


def test_a_fresh_process_gives_the_latents_and_pictures_of_the_pipeline_bit_for_bit(
    folder: Path, quantized: Pipeline, tmp_path: Path
) -> None:
    """With XLA's optimizations, as users have them: without, machine code rounds sums of groups otherwise."""
    quantized.save(tmp_path / "artifact")
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ELSEWHERE, str(folder), str(tmp_path / "artifact"), *PROMPTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    exported, pipeline = done.stdout.splitlines()
    assert len(set(pipeline.split())) == 3
    assert exported == f"{pipeline} []"


def test_weights_lie_in_the_folder_once_and_packed(folder: Path, quantized: Pipeline) -> None:
    with safe_open(folder / "weights/denoiser.safetensors", framework="numpy") as opened:
        held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert sum(array.nbytes for array in held.values()) == quantized.denoiser.nbytes()
    codes = held["blocks/0/mlp/fc1/weight/value/weight/values"]
    assert (codes.dtype, codes.shape) == (np.uint8, (128, 16))  # of [128, 32] codes
    assert not re.search(r'dense<"0x[^"]*"> : tensor<\S+x(ui|i)8>', module(folder, "denoise"))


def module(folder: Path, name: str) -> str:
    data = (folder / f"{name}.jaxexport").read_bytes()
    return str(jax.export.deserialize(bytearray(data)).mlir_module())


def test_one_program_for_all_platforms_multiplies_integers_and_calls_nothing_outside(tmp_path: Path) -> None:
    """Of a video, whose sampler draws noise in each step."""
    pipeline = tiny.quantized(tiny.video("stdit"), RECIPE)
    out = export_pipeline(pipeline, tmp_path / "p", steps=2, platforms=("cuda", "tpu", "cpu"))
    text = module(out, "denoise")
    assert "custom_call" not in text
    assert re.search(r"\(tensor<\S+xi8>, tensor<\S+xi8>\) -> tensor<\S+xi32>", text)
    facts = json.loads((out / "program.json").read_text())
    assert (facts["platforms"], facts["steps"], facts["frames"]) == (["cuda", "tpu", "cpu"], 2, 5)
    assert load_exported(out).batch == 1


def test_a_program_for_another_platform_is_refused_where_it_cannot_run(
    tmp_path: Path, quantized: Pipeline
) -> None:
    bare = dataclasses.replace(quantized, decoder=None)
    out = export_pipeline(bare, tmp_path / "p", guidance=1.0, platforms=("cuda",))
    assert json.loads((out / "program.json").read_text())["programs"].keys() == {
        "denoise", "encode_text", "encode_null"
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="is for cuda, and this process computes on cpu"):
        load_exported(out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"conditions": PROMPTS[:1]}, "1 conditions, and this program takes 2 at once"),
        ({"conditions": PROMPTS, "guidance": 1.0}, "guidance is 1.0, and this program is guided"),
        ({"conditions": [0, 1]}, "takes prompts, not int"),
    ],
)
def test_a_call_that_the_program_is_not_for_is_an_error(
    program: ExportedPipeline, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        program.latents(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": 0}, "at least one sample"),
        ({"platforms": ("cpu", "metal")}, "choose of cpu, cuda, tpu"),
        ({"platforms": ()}, "choose of cpu"),
        ({"size": (17, 16)}, "size 17x16 is impossible"),
        ({"frames": 3}, "makes pictures, not videos"),
    ],
)
def test_what_cannot_be_exported_is_an_error_and_leaves_nothing(
    quantized: Pipeline, tmp_path: Path, options: dict, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        export_pipeline(quantized, tmp_path / "p", **options)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_only_if_asked_and_only_if_it_is_a_program(
    quantized: Pipeline, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="exists already"):
        export_pipeline(quantized, folder)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="exists and is not an exported program"):
        export_pipeline(quantized, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_process_without_flatbuffers_is_told_of_the_extra(
    quantized: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"viditq-jax\[export\]"):
        export_pipeline(quantized, tmp_path / "p")


def test_the_command_line_exports_what_the_example_draws(tmp_path: Path, folder: Path) -> None:
    tiny.pipeline(depth=1).save(tmp_path / "model")
    said = verb.run(verb.Options(model=str(tmp_path / "model"), out=tmp_path / "program", batch=2, json=True))
    assert said["files"].keys() >= {path.name for path in folder.iterdir() if path.is_file()}
    example = runpy.run_path(str(ROOT / "examples/06_run_exported.py"))
    flags = ["--program", str(folder), "--out", str(tmp_path / "both.png")]
    example["main"]([*flags, "--prompt", *PROMPTS])
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.size == (32, 16)
