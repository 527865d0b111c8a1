"""The command line on tiny models: what works, and what is refused with one line and no debris."""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from converters import export, save_safetensors
from tests import tiny
from viditq_jax import cli, plugins
from viditq_jax.checkpoint import versions
from viditq_jax.cli import generate as generating
from viditq_jax.cli import main
from viditq_jax.cli._cache import FOLDER, SWITCH, keep_programs
from viditq_jax.cli._common import conditions
from viditq_jax.cli.generate import Options as GenerateOptions
from viditq_jax.cli.generate import default_folder
from viditq_jax.load import load_pipeline

VERBS = (
    "bench", "calibrate", "convert", "doctor", "evaluate", "export", "generate", "inspect", "quantize",
    "report", "search", "serve",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float artifact, and a checkpoint of its denoiser under the original names."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.pipeline(jnp.bfloat16, depth=1).save(folder / "float")
    save_safetensors(folder / "pixart.safetensors", export(tiny.pipeline().denoiser, "pixart", tiny.PIXART))
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """A file of two to calibrate with: one batch size for all, as every other compiles its own programs."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red apple\ntwo blue dogs\n")
    return str(file)


def config(folder: Path) -> str:
    """What the checkpoint alone does not tell, as a file for --config."""
    file = folder / "config.json"
    fields = ("heads", "input_size", "pe_interpolation", "text_length")
    file.write_text(json.dumps({name: getattr(tiny.PIXART, name) for name in fields}))
    return str(file)


def refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and one line on standard error that holds the words."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.strip().splitlines()[-1]
    assert re.search(words, line), captured.err
    assert line.startswith("viditq ")
    assert "Traceback" not in captured.err


def test_every_verb_is_listed_and_gives_a_real_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    usage = capsys.readouterr().out
    assert tuple(plugins.names("viditq_jax.cli")) == VERBS
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", usage, re.MULTILINE)
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert f"viditq {verb} " in capsys.readouterr().out


def test_an_unknown_verb_names_the_near_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantise"]) == 2
    assert "did you mean quantize" in capsys.readouterr().err


def test_convert_inspect_and_export_give_the_checkpoint_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "converted"
    source = folder / "pixart.safetensors"
    assert (
        main(["convert", str(source), "--out", str(out), "--dtype", "float32", "--config", config(tmp_path)])
        == 0
    )
    assert main(["inspect", str(out), "--export", str(tmp_path / "again.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert facts["parts"]["denoiser"]["model"] == "pixart"
    assert (tmp_path / "again.safetensors").read_bytes() == source.read_bytes()
    read_back = ["convert", str(tmp_path / "again.safetensors"), "--config", str(tmp_path / "again.json")]
    assert main([*read_back, "--out", str(tmp_path / "twice"), "--dtype", "float32"]) == 0
    first, second = (load_pipeline(each).denoiser for each in (out, tmp_path / "twice"))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    capsys.readouterr()
    refused(["inspect", str(out), "--export", str(tmp_path / "again.safetensors")], "exists already", capsys)


def test_quantize_generate_and_evaluate_work_together(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrated on the packaged prompts, as nothing else was asked for."""
    prompts = ["--prompt", "a red apple", "two blue dogs"]
    quantizing = ["quantize", str(folder / "float"), "--recipe", "naive-static-w8a8"]
    assert main([*quantizing, "--out", str(tmp_path / "w8")]) == 0
    assert "7 linear layers quantized" in capsys.readouterr().out
    for name, model in (("pictures", folder / "float"), ("quantized", tmp_path / "w8")):
        assert main(["generate", "--model", str(model), "--out", str(tmp_path / name), *prompts]) == 0
    assert np.asarray(Image.open(tmp_path / "quantized/00001.png")).shape == (16, 16, 3)
    capsys.readouterr()
    arguments = [str(tmp_path / "quantized"), "--reference", str(tmp_path / "pictures"), "--json"]
    assert main(["evaluate", *arguments]) == 0
    values = json.loads(capsys.readouterr().out)
    assert 15 < values["psnr_db"] < 60
    assert 0 < values["ssim"] < 1
    assert main(["inspect", str(tmp_path / "w8"), "--layers"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"blocks/0/attn/qkv +int8/channel", shown)
    assert re.search(r"blocks/0/attn +queries and keys float", shown)


def test_statistics_of_a_file_quantize_as_those_made_on_the_way(
    folder: Path, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And `inspect` tells, of each layer, the rule and what it did."""
    file = str(tmp_path / "stats.safetensors")
    source, given = [str(folder / "float"), "--recipe", "w8a8"], ["--prompts", prompts]
    assert main(["calibrate", *source, *given, "--out", file, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["conditions"], facts["ranges"], facts["layers"]) == (2, 1, 14)
    assert facts["peak_bytes"] > facts["bytes"] > 0
    refused(["quantize", *source, *given, "--stats", file], "--prompts would have no effect", capsys)
    dynamic = ["quantize", str(folder / "float"), "--recipe", "w8a8-dynamic", *given]
    refused(dynamic, "needs no calibration, so --prompts would have no effect", capsys)
    for name, extra in (("once", ["--stats", file]), ("on-the-way", given)):
        assert main(["quantize", *source, *extra, "--out", str(tmp_path / name)]) == 0
    kept, made = (load_pipeline(tmp_path / name).denoiser.params for name in ("once", "on-the-way"))
    jax.tree.map(np.testing.assert_array_equal, kept, made)
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "once"), "--layers"]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"rule 2: balance:alpha=0.5 \+ hadamard:block=32 \+ nearest \(balance folded\); \d+ bytes", shown
    )
    assert re.search(r"input [\d.]+ -> rotated, measured by evaluate; weight error [\d.]+%", shown)


def test_a_truncated_checkpoint_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (folder / "pixart.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    refused(
        ["convert", str(tmp_path / "cut.safetensors"), "--out", str(tmp_path / "out")],
        "cut.safetensors",
        capsys,
    )
    assert not (tmp_path / "out").exists()


def test_a_renamed_key_is_refused_by_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = export(tiny.pipeline().denoiser, "pixart", tiny.PIXART)
    tensors["blocks.1.attn.qqq.weight"] = tensors.pop("blocks.1.attn.qkv.weight")
    save_safetensors(tmp_path / "renamed.safetensors", tensors)
    arguments = ["convert", str(tmp_path / "renamed.safetensors"), "--config", config(tmp_path)]
    refused([*arguments, "--out", str(tmp_path / "out")], r"attn\.qkv\.weight.*attn\.qqq\.weight", capsys)
    assert not (tmp_path / "out").exists()


def test_another_family_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_safetensors(
        tmp_path / "vae.safetensors", export(tiny.pipeline().decoder, "autoencoder_kl", tiny.VAE, "diffusers")
    )
    refused(
        ["convert", str(tmp_path / "vae.safetensors"), "--out", str(tmp_path / "out")],
        "AutoencoderKL",
        capsys,
    )
    assert not (tmp_path / "out").exists()


class Evil:
    """A pickle of this runs a command when it is loaded carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_calls_a_command_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as file:
        file.writestr("evil/data.pkl", pickle.dumps({"state_dict": Evil(tmp_path / "ran")}, protocol=2))
        file.writestr("evil/version", "3\n")
    refused(["convert", str(tmp_path / "evil.pth"), "--out", str(tmp_path / "out")], "posix.system", capsys)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_an_artifact_with_a_flipped_byte_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.pipeline(jnp.bfloat16, depth=1).save(tmp_path / "artifact")
    file = tmp_path / "artifact/denoiser/blocks/0/mlp/fc1/weight/value/0.0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    arguments = ["generate", "--model", str(tmp_path / "artifact"), "--out", str(tmp_path / "pictures")]
    refused(arguments, r"blocks/0/mlp/fc1/weight\S* was altered", capsys)
    assert not (tmp_path / "pictures").exists()


def test_a_rule_that_matches_nothing_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = {
        "source": "a test",
        "rules": [{"match": "blocks/*/mlp/fc9", "weight": "int8/channel", "why": ""}],
    }
    (tmp_path / "wrong.json").write_text(json.dumps(recipe))
    arguments = ["quantize", str(folder / "float"), "--recipe", str(tmp_path / "wrong.json")]
    refused([*arguments, "--out", str(tmp_path / "out")], r"fc9 matches none .*blocks/\d/mlp/fc1", capsys)
    assert not (tmp_path / "out").exists()


def test_what_exists_is_not_overwritten_without_a_word(
    folder: Path, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(folder / "float"), "--recipe", "w8a8", "--prompts", prompts]
    arguments += ["--out", str(tmp_path / "w8a8")]
    assert main(arguments) == 0
    capsys.readouterr()
    refused(arguments, "exists already", capsys)
    assert main([*arguments, "--overwrite"]) == 0
    capsys.readouterr()
    refused(
        ["quantize", str(tmp_path / "w8a8"), "--out", str(tmp_path / "twice")], "quantized already", capsys
    )
    assert load_pipeline(tmp_path / "w8a8").recipe is not None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], "asked for 0 sampling steps"),
        (["--size", "17", "16"], "size 17x16 is impossible"),
        (["--frames", "3"], "makes pictures, not videos"),
        (["--batch", "0"], "batch is 0; it must be at least 1"),
        (["--num", "0"], "--num is 0"),
        (["--shard", "2", "2"], "shard 2 of 2"),
        (["--negative", "x", "--guidance", "1"], "'x' would have no effect"),
        (["--seed", "4294967296"], "from 0 to 4294967295"),
        (["--out", "FILE"], "is a file; choose a folder"),
    ],
)
def test_what_cannot_be_generated_is_said_before_a_calibration(
    flags: list[str],
    words: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("x")
    flags = [str(tmp_path / "file") if each == "FILE" else each for each in flags]
    monkeypatch.setattr(generating, "quantized", lambda *_: pytest.fail("calibrated first"))
    out = [] if "--out" in flags else ["--out", str(tmp_path / "out")]
    source = ["generate", "--model", str(folder / "float"), "--prompt", "gold", "--recipe", "w8a8"]
    refused([*source, *out, *flags], words, capsys)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_hold_an_artifact_is_said_before_a_calibration(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    arguments = ["quantize", str(folder / "float"), "--recipe", "w8a8", "--out", str(tmp_path / "file/x/y")]
    refused(arguments, r"file/x/y cannot be made: .*file is a file; choose another name", capsys)


def test_a_run_of_a_few_samples_is_extended_in_its_own_batches(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "grown"
    arguments = ["generate", "--model", str(folder / "float"), "--prompt", "gold", "--out", str(out)]
    assert main([*arguments, "--num", "2"]) == 0
    first = (out / "00000.png").read_bytes()
    assert main([*arguments, "--num", "5"]) == 0
    assert (out / "00000.png").read_bytes() == first
    assert len(list(out.glob("*.png"))) == 5
    assert json.loads((out / "generation.json").read_text())["batch"] == 2
    capsys.readouterr()
    refused([*arguments, "--num", "5", "--batch", "1"], r"another batch \(batch 2, not 1\)", capsys)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{versions()['viditq-jax']}\n"


def test_who_stops_reading_the_output_sees_no_error() -> None:
    """As `head` does; in a process of its own, whose output is a pipe that nobody reads any more."""
    line = "import sys; from viditq_jax.cli import main; sys.exit(main(['generate', '--help']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", line], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_flags_that_would_do_nothing_or_harm_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"empty\.txt holds no prompt"):
        conditions((), tmp_path / "empty.txt", (), tiny.pipeline())
    with pytest.raises(ValueError, match=r"picture\.png is not a text file"):
        conditions((), tmp_path / "picture.png", (), tiny.pipeline())
    refused(["inspect", "w8a8", "--export", str(tmp_path / "x")], "is a recipe; --layers, --speed", capsys)
    refused(["inspect", "--export", str(tmp_path / "picture.png")], "exists already", capsys)
    assert (tmp_path / "picture.png").read_bytes() == b"\x89PNG"


def test_recipes_explain_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "w8a8"]) == 0
    text = capsys.readouterr().out
    assert "ViDiT-Q" in text
    assert "int8/token" in text


def test_pictures_of_other_flags_go_to_another_folder_by_default() -> None:
    """So nobody meets the pictures of an earlier prompt, and a killed run finds its own."""
    folders = [
        default_folder(GenerateOptions(**flags))
        for flags in (
            {},
            {"recipe": "w8a8"},
            {"prompt": ("red apple",)},
            {"prompt": ("red apple",), "seed": 1},
            {"prompt": ("pizza",), "recipe": "w8a8"},
        )
    ]
    assert [str(folder) for folder in folders[:2]] == ["runs/generate", "runs/generate-w8a8"]
    assert folders[2].name.startswith("red-apple-")
    assert folders[4].name.startswith("pizza-w8a8-")
    assert len(set(folders)) == len(folders)
    assert default_folder(GenerateOptions(prompt=("red apple",), json=True)) == folders[2]


def test_equal_pictures_give_valid_json(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print({"psnr_db": float("inf"), "ssim": 1.0})
    assert json.loads(capsys.readouterr().out) == {"psnr_db": "inf", "ssim": 1.0}


def test_compiled_programs_are_kept_in_a_folder_of_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: dict[str, Any] = {}
    before = getattr(jax.config, FOLDER)
    jax.config.update(FOLDER, None)
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_programs()  # the tests' own switch is off
    assert told == {}
    monkeypatch.delenv(SWITCH)
    keep_programs()
    kept = tmp_path / "viditq-jax" / "programs"
    assert told[FOLDER] == str(kept)
    assert kept.stat().st_mode & 0o777 == 0o700
    told.clear()
    kept.chmod(0o777)
    keep_programs()
    assert told == {}
    assert f"others may write to {kept}" in capsys.readouterr().err
    monkeypatch.undo()
    jax.config.update(FOLDER, before)
