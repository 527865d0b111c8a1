"""What the README says was measured is what was measured, and what was measured is what recipes promise."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import with_tables
from viditq_jax import load_recipe
from viditq_jax.compare import packaged_recipes
from viditq_jax.quality import verdict

ROOT = Path(__file__).parent.parent
SPEED = ROOT / "benchmarks/records"
RECIPES = sorted(set(packaged_recipes()) - {"float"})
ROWS = [
    row
    for kind in ("image", "video")
    for row in json.loads((ROOT / f"benchmarks/records/recipes-{kind}.json").read_text())
]
QUALITY = json.loads((ROOT / "benchmarks/records/quality-image.json").read_text())
EIGHT_BITS = (
    "w8a8",
    "w8a8-dynamic",
    "w8a8-fast",
    "smoothquant-w8a8",
    "quarot-w8a8",
    "naive-static-w8a8",
    "ptqd-w8a8",
    "fp8",
)


def measured(model: str, recipe: str) -> dict[str, Any]:
    (row,) = [row for row in ROWS if (row["model"], row["recipe"]) == (model, recipe)]
    return row


@pytest.mark.parametrize("model", ["default", "stressed", "default-video"])
def test_every_packaged_recipe_was_measured(model: str) -> None:
    names = {row["recipe"] for row in ROWS if row["model"] == model}
    assert names >= set(RECIPES)
    fields = {"psnr_db", "ssim", "latent_rel_l2", "weight_bytes", "device", "date", "versions", "seed"}
    assert all(fields <= row.keys() for row in ROWS if row["recipe"] in RECIPES)


def test_videos_are_measured_over_time_as_well() -> None:
    names = {"frame_consistency", "flicker_levels", "warping_error_levels", "motion_error_px"}
    assert all(names <= row.keys() for row in ROWS if row["model"] == "default-video")
    for name in ("flicker_levels", "motion_error_px"):
        assert measured("default-video", "w8a8")[name] < measured("default-video", "w4a8")[name]


@pytest.mark.parametrize("model", ["default", "default-video"])
@pytest.mark.parametrize(
    ("better", "worse", "margin"),
    [
        ("w4a8", "w4a8-naive", 3),
        ("w4a8-plus", "w4a8", 0),
        ("w4a8-plus", "w4a8-balanced", 0),  # the paper's method
        ("w4a4-plus", "w4a8-naive", 0),
        *(("w8a8", other, -1) for other in EIGHT_BITS),
    ],
)
def test_recipes_keep_their_order_on_the_packaged_models(
    model: str, better: str, worse: str, margin: float
) -> None:
    assert measured(model, better)["psnr_db"] >= measured(model, worse)["psnr_db"] + margin


def test_outliers_break_the_naive_recipe_and_not_the_balanced_one() -> None:
    """25 dB is where pictures of 64 pixels differ at sight."""
    assert measured("stressed", "naive-static-w8a8")["psnr_db"] < 25
    assert measured("stressed", "w8a8")["psnr_db"] > measured("default", "w8a8")["psnr_db"] - 3


@pytest.mark.parametrize("model", ["default", "default-video"])
@pytest.mark.parametrize("name", RECIPES)
def test_weights_are_as_small_as_the_recipe_expects(name: str, model: str) -> None:
    expected = load_recipe(name).expect["weight_bytes_vs_bfloat16"]
    assert measured(model, name)["weight_bytes_vs_bfloat16"] <= expected


def test_quality_is_of_many_pictures_and_verdicts_are_those_of_the_intervals() -> None:
    assert QUALITY["pictures"] >= 512
    assert QUALITY["variants"].keys() == {"float32", "bfloat16", "w8a8", "w4a8", "w4a8-plus"}
    network = ROOT / "viditq_jax/assets/metric/model.safetensors"
    assert QUALITY["metric_network_sha256"] == hashlib.sha256(network.read_bytes()).hexdigest()
    for found in QUALITY["variants"].values():
        for name, figure in found.items():
            for each in figure.values() if name == "degradation_percent" else (figure,):
                assert each["low"] <= each["value"] <= each["high"]
        for worse in found.get("degradation_percent", {}).values():
            assert worse["below_1_percent"] == verdict(worse)


def test_the_tables_of_the_readme_are_the_records() -> None:
    """Otherwise: python benchmarks/readme.py."""
    readme = (ROOT / "README.md").read_text()
    assert with_tables(readme) == readme


def test_a_searched_plan_is_better_than_the_same_bits_everywhere_and_than_the_greedy_rule() -> None:
    """As the record has it; and more bits are never worse."""
    plans = {
        (row["budget"], row["plan"]): row for row in json.loads((SPEED / "pareto-image.json").read_text())
    }
    found = plans[5.0, "milp"]
    assert found["psnr_db"] >= plans[4.0, "uniform"]["psnr_db"] + 2
    assert found["psnr_db"] > plans[5.0, "greedy"]["psnr_db"]
    assert found["latent_rel_l2"] < plans[5.0, "greedy"]["latent_rel_l2"]
    curve = [plans[budget, "milp"] for budget in (4.0, 4.5, 5.0, 6.0, 8.0)]
    assert [row["psnr_db"] for row in curve] == sorted(row["psnr_db"] for row in curve)
    assert all(row["average_bits"] <= row["budget"] for row in curve)


@pytest.mark.parametrize("model", ["default", "stressed", "default-video"])
def test_a_metric_for_each_group_of_layers_is_as_good_as_one_for_all_at_five_bits(model: str) -> None:
    rows = json.loads((SPEED / "search-metrics.json").read_text())
    plans = [row for row in rows if (row["model"], row["budget"], row["plan"]) == (model, 5.0, "milp")]
    (decoupled,) = [row for row in plans if row["group_metrics"]]
    (one,) = [row for row in plans if not row["group_metrics"]]
    assert decoupled["psnr_db"] >= one["psnr_db"] - 0.1
    uniform = next(
        row for row in rows if (row["model"], row["budget"], row["plan"]) == (model, 4.0, "uniform")
    )
    assert decoupled["psnr_db"] >= uniform["psnr_db"] + 2


def test_bits_that_change_over_the_steps_come_closer_and_store_more_as_the_readme_says() -> None:
    rows = json.loads((SPEED / "search-vary.json").read_text())
    plans = {(row["budget"], row["plan"]): row for row in rows}
    readme, eight = " ".join((ROOT / "README.md").read_text().split()), plans[8.0, "uniform"]
    for budget in (4.5, 5.0, 5.5, 6.0):
        varying, same = plans[budget, "varying"], plans[budget, "milp"]
        assert max(varying["average_bits"], same["average_bits"]) <= budget
        assert varying["psnr_db"] > same["psnr_db"]
        assert varying["weight_bytes"] > same["weight_bytes"]

    psnr = {key: plans[key]["psnr_db"] for key in itertools.product((5.0, 6.0), ("varying", "milp"))}
    assert (
        f"{psnr[5.0, 'varying']:.1f} dB instead of {psnr[5.0, 'milp']:.1f} for 5 bits and"
        f" {psnr[6.0, 'varying']:.1f} instead of {psnr[6.0, 'milp']:.1f} for 6"
    ) in readme
    stored = [plans[budget, "varying"]["weight_bytes"] / 1e6 for budget in (5.0, 6.0)]
    assert min(stored) > eight["weight_bytes"] / 1e6
    assert (
        f"{stored[0]:.2f} and {stored[1]:.2f} MB, more than 8 bits everywhere"
        f" ({eight['weight_bytes'] / 1e6:.2f} MB, {eight['psnr_db']:.1f} dB)"
    ) in readme


def test_records_of_speed_say_what_they_compared_and_where() -> None:
    files = [file for kind in ("ops", "pipeline") for file in SPEED.glob(f"{kind}-*.json")]
    records = [json.loads(file.read_text()) for file in files]
    head = {"device", "name", "cores", "versions", "date", "ceilings", "settings"}
    assert all(head <= record.keys() for record in records)
    rows = [row for record in records for row in record["rows"]]
    fields = {"case", "float", "ratio_vs_float", "median_s", "min_s", "p90_s", "baseline_median_s"}
    assert all(fields <= row.keys() and ("implementation" in row or "recipe" in row) for row in rows)


def test_many_devices_processes_and_kills_changed_no_picture() -> None:
    """The script writes no record where one differs."""
    record = json.loads((SPEED / "scale-image.json").read_text())
    assert record["count"] >= 1000
    assert record["kills"] == len(record["listed_at_kill"]) >= 20
    assert record["listed_at_kill"] == sorted(record["listed_at_kill"])  # nothing that was listed is lost
    assert {row["run"] for row in record["runs"]} == {"1 devices", "2 devices", "4 devices", "2 processes"}
    assert all(row["ratio_vs_plain_loop"] > 0 for row in record["runs"])


def test_the_second_start_is_the_faster_one_and_the_readme_gives_its_figures() -> None:
    record = json.loads((SPEED / "start.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert {"default", "default in w8a8, an artifact", "default-video"} <= record["starts"].keys()
    for found in record["starts"].values():
        assert len(found["first_starts"]) == len(found["second_starts"]) == record["repeats"] >= 3
        assert found["second_s"] < found["first_s"]
        assert found["ratio"] == pytest.approx(found["first_s"] / found["second_s"])
        assert all(f"{found[name]:.1f} s" in readme for name in ("first_s", "second_s"))
