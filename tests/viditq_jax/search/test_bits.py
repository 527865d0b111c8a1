"""A whole search on the tiny pipeline: planted fragility is found, a kill loses nothing, records are true."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from viditq_jax import programs
from viditq_jax.cli import main
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import calibration_conditions, default_conditions
from viditq_jax.quant.recipe import Recipe, Rule, load_recipe
from viditq_jax.quant.size import weight_bytes
from viditq_jax.quant.spec import Spec
from viditq_jax.search import result_rows, search, search_conditions
from viditq_jax.search.samples import Samples, apart, detail, latent, motion, structure

PROMPTS, JUDGES = ["a red apple", "two blue dogs"], ["gold", "cat face"]
RULE = Rule(("blocks/*",), Spec.parse("int4/channel/asym"), Spec.parse("int8/token"))
RECIPE = Recipe((RULE,), name="plain")
FRAGILE = {  # what reads the values of attention, and where these are made
    "blocks/0/attn/proj": "blocks/0/attn/qkv",
    "blocks/1/attn/proj": "blocks/1/attn/qkv",
    "blocks/1/cross_attn/proj": "blocks/1/cross_attn/kv_linear",
}


def planted() -> Pipeline:
    """The tiny pipeline with a value channel a head 64 times smaller, and what reads it as much larger.

    The function stays. Rows have their own scales, so what makes the values rounds as before; but the row
    of a projection now has one large number, whose scale leaves the others few codes.
    """
    pipeline = tiny.pipeline()
    width = tiny.PIXART.width
    makers = {maker: reader for reader, maker in FRAGILE.items()}

    def change(name, variable):
        value, (path, _, kind) = variable.get_value(), name.rpartition("/")
        if path in FRAGILE and kind == "weight":
            return value.at[:, ::16].multiply(64.0)
        if path in makers:  # rows of the values come last
            return value.at[value.shape[0] - width :: 16].multiply(1 / 64)
        return value

    return dataclasses.replace(pipeline, denoiser=pipeline.denoiser.map_variables(change))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[dict, Pipeline, object]:
    """Three layers of the size of a projection may have 8 bits."""
    pipeline, out = planted(), tmp_path_factory.mktemp("search")
    weights = pipeline.denoiser.weights()
    total = sum(w.size for path, w in weights.items() if path.startswith("blocks/"))
    budget = 4 + 4 * sum(weights[path].size for path in FRAGILE) / total
    record = search(
        pipeline, RECIPE, out, budget=budget, conditions=PROMPTS, judges=JUDGES, batch=2, budgets=(6,)
    )
    return record, pipeline, out


def test_a_planted_pipeline_draws_the_same_pictures():
    """Powers of two: nothing rounds otherwise."""
    a, b = planted().latents(PROMPTS), tiny.pipeline().latents(PROMPTS)
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_planted_layers_and_no_others_get_more_bits(found):
    record, _, _ = found
    assert {path for path, bits in record["plan_bits"].items() if bits == 8} == set(FRAGILE)
    plan = load_recipe(found[2] / "plan.json")
    assert plan == Recipe.from_json(record["plan"])
    assert all(rule.why for rule in plan.rules)


def test_the_whole_search_of_one_pipeline_compiles_one_sampling_program(found, tmp_path):
    """The float samples to judge by have their own; the rest is data, another budget too."""
    record, pipeline, _ = found
    before = programs.denoise._cache_size()
    again = search(
        pipeline, RECIPE, tmp_path, budget=5, conditions=PROMPTS, judges=JUDGES, batch=2, by="block"
    )
    assert programs.denoise._cache_size() == before
    assert len(again["sensitivities"]) == 2 < len(record["sensitivities"]) == 14


def test_rows_are_what_their_plans_measure(found):
    record, pipeline, _ = found
    rows = {(row["budget"], row["plan"]): row for row in result_rows(record)}
    assert [key for key in rows if key[1] == "uniform"] == [(4.0, "uniform"), (8.0, "uniform")]
    small = pipeline.quantized(load_recipe(found[2] / "plan.json"))
    distance = apart(np.asarray(small.latents(JUDGES)), np.asarray(pipeline.latents(JUDGES)))
    row = rows[record["budget"], "milp"]
    assert row["latent_rel_l2"] == pytest.approx(float(distance.mean()), rel=0.02)
    stored = sum(layer["bytes"] for layer in small.facts["layers"].values())
    assert row["weight_bytes"] == stored
    assert row["average_bits"] == pytest.approx(record["budget"])
    assert rows[8.0, "uniform"]["measured"] == rows[8.0, "uniform"]["predicted"] == 0
    assert (
        rows[8.0, "uniform"]["latent_rel_l2"] < row["latent_rel_l2"] < rows[4.0, "uniform"]["latent_rel_l2"]
    )


def test_a_search_that_was_killed_goes_on_with_the_same_plan(found, tmp_path, monkeypatch):
    record, pipeline, out = found
    lines = (out / "table.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "table.jsonl").write_text("".join(lines[:6]) + lines[6][:30])
    sampled = []
    kept = programs.denoise
    monkeypatch.setattr(programs, "denoise", lambda *a, **k: (sampled.append(1), kept(*a, **k))[1])
    again = search(
        pipeline, RECIPE, tmp_path, budget=record["budget"], conditions=PROMPTS, judges=JUDGES, batch=2
    )
    assert (tmp_path / "table.jsonl").read_text() == "".join(lines)
    assert again["plan"] == record["plan"]
    assert len(sampled) == (1 + 9) + (1 + 4)  # units and their reference; float and four plans, 8 bits once


def test_one_metric_for_all_and_statistics_alone_are_other_ways(found, tmp_path):
    _, pipeline, _ = found
    gptq = Recipe((dataclasses.replace(RULE, rounding="gptq"),), name="gptq")
    record = search(pipeline, gptq, tmp_path, budget=5, judges=JUDGES, batch=2, cheap=True)
    assert (record["error"], record["group_metrics"]) == ("layer_error", {})
    errors = {row["layers"][0]: row["values"]["layer_error"] for row in record["sensitivities"]}
    assert len(errors) == 14
    assert all(0 < error < 1 for error in errors.values())


def test_what_cannot_be_searched_is_refused(found, tmp_path):
    _, pipeline, _ = found
    with pytest.raises(ValueError, match="at least two"):
        search(pipeline, RECIPE, tmp_path, budget=5, bits=(4, 4))
    with pytest.raises(ValueError, match="quantized already"):
        search(tiny.quantized(pipeline, RECIPE), RECIPE, tmp_path, budget=5)
    assert not list(tmp_path.iterdir())


def test_the_command_line_searches_and_draws(found, tmp_path, capsys, monkeypatch):
    _, pipeline, _ = found
    monkeypatch.setattr("viditq_jax.cli.search.load_pipeline", lambda model: pipeline)
    RECIPE.save(tmp_path / "plain.json")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    flags = [
        "--recipe",
        tmp_path / "plain.json",
        "--prompts",
        tmp_path / "prompts.txt",
        "--out",
        tmp_path / "out",
    ]
    flags += ["--budget", "5", "--batch", "2", "--record", tmp_path / "rows.json", "--floor", "*/mlp/fc2=8"]
    assert main(["search", *map(str, flags)]) == 0
    printed = capsys.readouterr().out
    assert "viditq generate --recipe" in printed
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["plan"] for row in rows} == {"milp", "greedy", "uniform"}
    bits = json.loads((tmp_path / "out/search.json").read_text())["plan_bits"]
    assert bits["blocks/0/mlp/fc2"] == bits["blocks/1/mlp/fc2"] == 8
    for name in ("sensitivities.png", "pareto.png"):
        assert np.asarray(Image.open(tmp_path / "out" / name)).std() > 10
    assert main(["search", "--floor", "fc2"]) == 1
    assert "write a pattern and its bits" in capsys.readouterr().err


def samples(x: np.ndarray) -> Samples:
    return Samples(tiny.pipeline(), x)


def test_measures_tell_what_changed():
    """A shift of everything is structure, an alternating sign detail, a change of one frame motion."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 8, 8, 4))
    board = (-1.0) ** np.add.outer(np.arange(8), np.arange(8))[..., None]
    moved = x + 0.1
    assert structure(samples(moved), samples(x)) > 100 * detail(samples(moved), samples(x))
    assert motion(samples(moved), samples(x)) < 1e-20
    rough = x + 0.1 * board
    assert detail(samples(rough), samples(x)) > 100 * structure(samples(rough), samples(x))
    late = x + np.arange(3)[:, None, None, None]
    assert motion(samples(late), samples(x)) > 0.1
    for measure in (latent, structure, detail, motion):
        assert measure(samples(x), samples(x)) == 0
    assert latent(samples(2 * x), samples(x)) == pytest.approx(1)


def test_prompts_of_a_search_are_none_that_plans_are_judged_on():
    pipeline = tiny.pipeline()
    assert len(search_conditions(pipeline)) == 8
    assert not set(search_conditions(pipeline)) & set(default_conditions(pipeline))
    assert not set(search_conditions(pipeline)) & set(calibration_conditions(pipeline))
    facts = {**pipeline.facts, "conditions": {"kind": "label", "classes": 1000}}
    labels = dataclasses.replace(pipeline, facts=facts)
    assert len(set(search_conditions(labels))) == 8
    assert not set(search_conditions(labels)) & set(default_conditions(labels))


def test_a_plan_over_time_runs_as_it_was_judged_and_stands_beside_one_that_stays(tmp_path):
    """The three steps of this pipeline have times above and below 700."""
    pipeline = tiny.pipeline(depth=1)
    record = search(
        pipeline,
        RECIPE,
        tmp_path,
        budget=5,
        conditions=PROMPTS,
        judges=JUDGES,
        batch=2,
        bounds=(700,),
        vary=True,
    )
    rows = {(row["budget"], row["plan"]): row for row in record["plans"]}
    varying, same = rows[5, "varying"], rows[5, "milp"]
    assert varying["average_bits"] <= 5
    assert varying["predicted"] <= same["predicted"]
    plan = load_recipe(tmp_path / "plan.json")
    assert plan.ranges == (700,)
    assert load_recipe(tmp_path / "plan-same.json").ranges == ()
    small = tiny.quantized(pipeline, plan)
    distance = apart(np.asarray(small.latents(JUDGES)), np.asarray(pipeline.latents(JUDGES)))
    np.testing.assert_allclose(varying["latent_rel_l2"], distance.mean(), rtol=1e-3)
    stored = sum(row.stored for row in weight_bytes(small.denoiser).values())
    assert varying["weight_bytes"] == stored > same["weight_bytes"]
    with pytest.raises(ValueError, match="give the times at which they meet"):
        search(pipeline, RECIPE, tmp_path / "other", budget=5, vary=True)
