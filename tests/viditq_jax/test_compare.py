"""A comparison of recipes on the tiny pipeline: its records, its pictures, and going on after a kill."""

import json
import shutil
from pathlib import Path

import pytest

from tests import tiny
from viditq_jax import compare
from viditq_jax.cli import main
from viditq_jax.compare import compare_recipes, packaged_recipes, result_rows
from viditq_jax.conditions import packaged_prompts
from viditq_jax.evaluate import evaluate
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.recipe import RecipeError
from viditq_jax.report import write_report

PROMPTS = packaged_prompts()[:3]
COARSE = {
    "name": "coarse",
    "rules": [{"match": "blocks/*", "weight": "int4/channel", "act": "int8/tensor/static"}],
}
MISFIT = {"name": "misfit", "rules": [{"match": "nothing/*", "weight": "int8/channel"}]}


def pipeline() -> Pipeline:
    """One block, and one batch size in this file: each variant and each batch size compiles its own programs.

    Smaller last batches are tested where they are made: in generate, trajectory and calibrate.
    """
    return tiny.pipeline(depth=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("recipes")
    found = {}
    for recipe in (COARSE, MISFIT):
        file = folder / f"{recipe['name']}.json"
        file.write_text(json.dumps(recipe))
        found[recipe["name"]] = str(file)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("run")
    return out, compare_recipes(pipeline(), [files["coarse"]], PROMPTS, out, title="tiny", batch=3)


def test_every_recipe_is_measured_on_both_models_after_the_reference(run: tuple[Path, dict]) -> None:
    out, records = run
    names = [f"{model}/{name}" for model in ("tiny", "stressed") for name in ("float", "coarse")]
    assert list(records["variants"]) == names
    assert json.loads((out / "metrics.json").read_text()) == records
    for name in names:
        assert len(list((out / "pictures" / name).glob("*.png"))) == len(PROMPTS)


def test_the_figures_are_those_of_the_pictures_and_of_the_weights(run: tuple[Path, dict]) -> None:
    out, records = run
    variants = records["variants"]
    for model in ("tiny", "stressed"):
        coarse = variants[f"{model}/coarse"]
        expected = evaluate(out / f"pictures/{model}/coarse", reference=out / f"pictures/{model}/float")
        assert (coarse["psnr_db"], coarse["ssim"]) == (expected["psnr_db"], expected["ssim"])
        assert coarse["latent_rel_l2"] == pytest.approx(coarse["drift"]["relative_l2"][-1], rel=1e-5)
        assert len(coarse["drift"]["t"]) == pipeline().steps
        assert len(coarse["layers"]) == 7
        floor = records["noise_floor"][model]
        assert 0 < floor["latent_rel_l2"] < coarse["latent_rel_l2"]
    assert variants["tiny/float"]["weight_bytes_vs_bfloat16"] == 2.0  # stored in float32
    # half a byte a weight; a float32 scale a row of 32 inputs, or of 128: at most 1/8 byte more
    assert 0.25 < variants["tiny/coarse"]["weight_bytes_vs_bfloat16"] < 0.32


def test_rows_hold_each_variant_and_the_noise_floor_of_each_model(run: tuple[Path, dict]) -> None:
    rows = result_rows(run[1])
    names = [(row["model"], row["recipe"]) for row in rows]
    assert names[:2] == [("tiny", "bfloat16 against float32"), ("stressed", "bfloat16 against float32")]
    assert names[2:4] == [("tiny", "float"), ("tiny", "coarse")]
    wanted = {"psnr_db", "ssim", "latent_rel_l2", "prompts", "seed", "steps", "device", "date", "versions"}
    assert all(wanted <= row.keys() for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_the_report_draws_the_run(run: tuple[Path, dict]) -> None:
    page = write_report(run[0])[1].read_text()
    assert page.count("data:image/svg+xml") == 2
    assert (run[0] / "recipes.png").is_file()


def test_a_finished_variant_is_not_made_again_and_a_missing_one_is(
    run: tuple[Path, dict], files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, records = run
    made = []
    original = compare.quantize_pipeline

    def counted(*args, **kwargs):
        made.append(args[1].name)
        return original(*args, **kwargs)

    monkeypatch.setattr(compare, "quantize_pipeline", counted)
    (out / "results/stressed/coarse.json").unlink()
    again = compare_recipes(pipeline(), [files["coarse"]], PROMPTS, out, title="tiny", batch=3)
    assert made == ["coarse"]
    assert again["variants"]["tiny/coarse"] == records["variants"]["tiny/coarse"]
    for name in ("psnr_db", "ssim", "latent_rel_l2", "drift", "layers"):
        assert again["variants"]["stressed/coarse"][name] == records["variants"]["stressed/coarse"][name]


def test_other_settings_do_not_pass_for_finished(run: tuple[Path, dict], files: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="made with another seed"):
        compare_recipes(
            pipeline(), [files["coarse"]], PROMPTS, run[0], title="tiny", stressed=False, seed=1, batch=3
        )


def test_what_does_not_fit_is_refused_or_noted(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nothing/"):
        compare_recipes(pipeline(), [files["misfit"]], PROMPTS, tmp_path)
    assert list(tmp_path.iterdir()) == []
    records = compare_recipes(
        pipeline(), [files["misfit"]], PROMPTS, tmp_path, stressed=False, skip_misfits=True
    )
    assert list(records["variants"]) == ["default/float"]
    assert "nothing/*" in records["skipped"]["misfit"]
    with pytest.raises(ValueError, match="two recipes are called 'coarse'"):
        compare_recipes(pipeline(), [files["coarse"]] * 2, PROMPTS, tmp_path)


def test_all_packaged_recipes_are_found_with_the_reference_first() -> None:
    names = packaged_recipes()
    assert names[0] == "float"
    assert {"w8a8", "w4a8-group"} <= set(names)


def test_the_command_line_compares_records_reports_and_fails_under_a_threshold(
    run: tuple[Path, dict], files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks for what the run above holds and makes nothing anew: weights, prompts, seed and batch agree."""
    pipeline().save(tmp_path / "tiny")
    out, record = shutil.copytree(run[0], tmp_path / "run"), tmp_path / "rows.json"
    made = {file: file.stat().st_mtime_ns for file in out.glob("*/tiny/**/*") if file.is_file()}
    arguments = ["evaluate", "--model", str(tmp_path / "tiny"), "--recipes", files["coarse"], "--count", "3"]
    assert main([*arguments, "--out", str(out), "--record", str(record), "--no-stress"]) == 0
    assert "coarse" in capsys.readouterr().out
    assert made == {file: file.stat().st_mtime_ns for file in out.glob("*/tiny/**/*") if file.is_file()}
    rows = json.loads(record.read_text())
    assert [row["recipe"] for row in rows] == ["bfloat16 against float32", "float", "coarse"]
    assert main(["report", str(out), "--fail-under", "psnr_db=5"]) == 0
    assert "recipes.png" in capsys.readouterr().out
    assert main(["report", str(out), "--fail-under", "psnr_db=90", "ssim=0.1"]) == 1
    assert "tiny/coarse: psnr_db" in capsys.readouterr().err
