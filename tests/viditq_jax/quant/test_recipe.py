"""Recipes: reading, writing, refusing, resolving."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from viditq_jax.models import dit, latte, latte_t2v, pixart, stdit, stdit3
from viditq_jax.net import abstract
from viditq_jax.quant.attention import attentions
from viditq_jax.quant.ranges import range_index
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule, load_recipe
from viditq_jax.quant.spec import Spec

W8, W4 = Spec.parse("int8/channel"), Spec.parse("int4/group128")
SHAPES = {
    path: jax.ShapeDtypeStruct(shape, "float32")
    for path, shape in {
        "blocks/0/attn/qkv": (576, 192),
        "blocks/0/mlp/fc2": (192, 768),
        "head": (8, 192),
    }.items()
}
BASELINES = ("naive-static", "smoothquant", "quarot", "q-diffusion", "ptqd")
OURS = ("float", "w8a8", "w8a8-dynamic", "w8a8-fast", "w6a6", "w4a8", "w4a8-balanced", "w4a8-naive", "w4a8-group", "w4a8-timestep", "w4a8-plus", "w4a8-mp", "w4a8-mp-timestep", "w4a4-plus", "fp8")  # fmt: skip  # noqa: E501
PACKAGED = sorted([*OURS, *(f"{name}-{bits}" for name in BASELINES for bits in ("w8a8", "w4a8"))])


def recipe(*rules, **fields):
    return Recipe(tuple(rules), **fields)


def test_the_first_rule_that_matches_wins_and_other_layers_have_none():
    attn, rest = Rule(("*/qkv", "*/fc9"), W8, optional=True), Rule(("blocks/*",), None)
    assert recipe(attn, rest).resolve(SHAPES) == {"blocks/0/attn/qkv": attn, "blocks/0/mlp/fc2": rest}


def test_a_rule_that_matches_nothing_is_an_error_with_the_nearest_names():
    with pytest.raises(
        RecipeError, match=r"rule 2: blocks/0/mlp/fc3 matches none of the 3.*blocks/0/mlp/fc2"
    ):
        recipe(Rule(("*",), W8), Rule(("blocks/0/mlp/fc3",), None)).resolve(SHAPES)


def test_a_pattern_that_matches_nothing_is_an_error_even_beside_one_that_does():
    """Names in the release's lists matched nothing, and nobody noticed (D17)."""
    with pytest.raises(RecipeError, match=r"rule 1: blocks.0.mlp.fc2 matches none of the 3 layers"):
        recipe(Rule(("head", "blocks.0.mlp.fc2"), W8)).resolve(SHAPES)


def test_patterns_of_an_optional_rule_may_match_nothing():
    rule = Rule(("head", "t_block/*"), W8, optional=True)
    assert recipe(rule, Rule(("nowhere",), None, optional=True)).resolve(SHAPES) == {"head": rule}


def test_a_rule_whose_layers_are_all_taken_is_an_error():
    with pytest.raises(RecipeError, match="rule 2: head: earlier rules take all"):
        recipe(Rule(("*",), W8), Rule(("head",), None)).resolve(SHAPES)


def test_a_format_that_does_not_fit_is_an_error_that_names_layer_and_rule_and_what_fits():
    with pytest.raises(RecipeError, match=r"rule 1: blocks/0/attn/qkv: int4/group128: .*32 or 64") as error:
        recipe(Rule(("*",), W4)).resolve(SHAPES)
    assert "rule 1: head" in str(error.value)
    assert "fc2" not in str(error.value)  # 768 = 6 * 128


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(("*",), W8, rounding="nearly"), "rule 1: rounding: 'nearly' is not known; known: .*nearest"),
        (
            Rule(("*",), W8, prepare=("balanse:0.1",)),
            "rule 1: prepare: 'balanse' is not known; known: balance",
        ),
        (Rule(("*",), W8, prepare=("balance:beta=1",)), "prepare: 'balance' has no option 'beta=1'.*alpha"),
        (Rule(("*",), W8, prepare=("balance:alpha=much",)), "balance: alpha='much' is not a number"),
        (Rule(("*",), W8, prepare=("balance:alpha=1.5",)), "balance: alpha is 1.5; it lies in"),
        (Rule(("*",), None, low_rank=4), "rule 1: act, prepare or low_rank with an unquantized weight"),
        (Rule(("*",), W8, Spec.parse("fp8/token")), "int8/channel with fp8/token: a product takes"),
        (
            Rule(("*",), Spec.parse("fp8/channel"), rounding="gptq"),
            "gptq chooses between integers; use nearest",
        ),
        (Rule(("*",), W8, low_rank=-4), "rule 1: low_rank: -4"),
        (Rule(("head",), W8, low_rank=9), "rule 1: head: low_rank: 9 is more than its 8"),
        (Rule(("head",), W8, prepare=("hadamard:block=25",)), "rule 1: head: hadamard:block=25: "),
        (Rule(("*",), W8, prepare=("balance:ranges=true",)), "ranges: a rule has parameters that change"),
        (Rule(("*",), Spec.parse("int8/token")), "rule 1: weight: int8/token is for inputs"),
        (Rule(("*",), W8, W8), "rule 1: act: int8/channel is for weights"),
        (
            Rule(("*",), None, Spec.parse("int8/token")),
            "rule 1: act, prepare or low_rank with an unquantized",
        ),
    ],
)
def test_an_impossible_rule_is_an_error(rule, message):
    with pytest.raises(RecipeError, match=message):
        recipe(rule).resolve(SHAPES)


@pytest.mark.parametrize(
    ("ranges", "message"), [((501, 200), "do not rise"), ((0,), "do not rise"), ((501,), "no rule")]
)
def test_ranges_must_rise_and_have_a_use(ranges, message):
    with pytest.raises(RecipeError, match=message):
        recipe(Rule(("*",), W8), ranges=ranges).resolve(SHAPES)


def test_a_recipe_survives_a_file(tmp_path):
    written = recipe(
        Rule(("a*", "b"), None, why="small"),
        Rule(
            ("*",), Spec.parse("int4/group64/asym"), Spec.parse("int8/token"),
            prepare=("balance:alpha=0.3,ranges=true", "hadamard:block=64"), rounding="gptq", low_rank=4,
            optional=True,
        ),
        ranges=(250, 501), correction="ptqd", source="here", expect={"fid": 3.5}, name="mine",
    )  # fmt: skip
    written.save(tmp_path / "file.json")
    assert load_recipe(tmp_path / "file.json") == written


def test_all_faults_of_a_file_are_reported_with_file_and_rule(tmp_path):
    file = tmp_path / "bad.json"
    file.write_text(
        json.dumps(
            {
                "sauce": "typo",
                "ranges": ["a"],
                "rules": [
                    {"match": "*", "wieght": "int8/channel"},
                    {"match": 3, "weight": "int9/channel"},
                    {"weight": 8},
                    "rule",
                    {"match": ["a", 1], "act": "int8"},
                    {"match": "a", "low_rank": True},
                ],
            }
        )
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    message = str(error.value)
    for part in [
        "unknown field 'sauce'; did you mean source", "ranges: found ['a']",
        "rule 1: unknown field 'wieght'; did you mean weight", "rule 2: match: found 3, expected str or list",
        "rule 2: weight: int9/channel: 9 bits", "rule 3: weight: found 8, expected str",
        "rule 3: match: give a pattern",
        "rule 4: found str", "rule 5: match: found ['a', 1]", "rule 5: act: 'int8' is no number format",
        "rule 6: low_rank: found True, expected int",
    ]:  # fmt: skip
        assert part in message
    assert all(line.startswith(str(file)) for line in message.splitlines())


def test_a_file_that_is_not_json_is_an_error_with_its_line(tmp_path):
    (tmp_path / "bad.json").write_text('{"rules":\n [}')
    with pytest.raises(RecipeError, match=r"bad.json: line 2"):
        load_recipe(tmp_path / "bad.json")


def test_an_empty_recipe_is_refused():
    with pytest.raises(RecipeError, match="at least one rule"):
        Recipe.from_json({"rules": []})


def test_an_unknown_name_is_an_error_with_the_nearest_names():
    with pytest.raises(RecipeError, match=r"w8a9 is neither.*did you mean w8a8"):
        load_recipe("w8a9")


NETS = {
    "dit": abstract(dit.build, dit.CONFIGS["dit-xl-2-256"]),
    "pixart": abstract(pixart.build, dataclasses.replace(pixart.CONFIGS["pixart-sigma-xl-2-256"], depth=2)),
    "pixart, micro-conditions": abstract(
        pixart.build,
        dataclasses.replace(pixart.CONFIGS["pixart-alpha-xl-2-1024-ms"], width=192, heads=3, depth=2),
    ),
    "stdit": abstract(stdit.build, dataclasses.replace(stdit.CONFIGS["stdit-xl-2-16x512x512"], depth=2)),
    "latte": abstract(latte.build, dataclasses.replace(latte.CONFIGS["latte-xl-2-ucf101"], depth=2)),
    "latte_t2v": abstract(latte_t2v.build, dataclasses.replace(latte_t2v.CONFIGS["latte-1"], depth=2)),
    "stdit3": abstract(stdit3.build, dataclasses.replace(stdit3.CONFIGS["stdit3-xl-2"], depth=2)),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_recipes_resolve_and_quantize_the_linears_of_the_blocks_alone(name, net):
    packaged = load_recipe(name)
    assert packaged.name == name
    assert packaged.source
    assert all(rule.why for rule in (*packaged.rules, *packaged.attention))
    weights = NETS[net].weights()
    rules = packaged.resolve(weights)
    unnamed = set(weights) - set(rules)  # these stay in floating point too
    assert not [path for path in unnamed if not path.startswith("fps_embedder/")]
    quantized = {path for path, rule in rules.items() if rule.weight}
    per_block = ["attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2"]
    prompt = ["cross_attn/q_linear", "cross_attn/kv_linear", "cross_attn/proj"]
    if net == "stdit":
        per_block += ["attn_temp/qkv", "attn_temp/proj", *prompt]
    elif net in ("latte_t2v", "stdit3"):
        second = per_block + (prompt if net == "stdit3" else [])
        pair = {"spatial": per_block + prompt, "temporal": second}
        per_block = [f"{half}/{layer}" for half, layers in pair.items() for layer in layers]
    elif net not in ("dit", "latte"):
        per_block += prompt
    blocks = {path.split("/")[1] for path in weights if path.startswith("blocks/")}
    expected = {f"blocks/{i}/{layer}" for i in blocks for layer in per_block}
    assert quantized == (set() if name == "float" else expected)
    modules = attentions(NETS[net])
    assert not [path for path in modules if "temp" in path]  # across frames are too few keys
    assert set(packaged.resolve_attention(modules)) == (set(modules) if name == "w8a8-fast" else set())


def test_no_recipe_is_packaged_without_this_test():
    from importlib import resources

    folder = resources.files("viditq_jax.assets") / "recipes"
    assert sorted(item.name.removesuffix(".json") for item in folder.iterdir()) == PACKAGED


def test_the_released_mixed_plan_gives_the_mlp_of_stdit_8_bits():
    """Of 28 blocks with 9 linears , 13 with queries, keys and values apart."""
    weights = abstract(stdit.build, stdit.CONFIGS["stdit-xl-2-16x512x512"]).weights()
    rules = load_recipe("w4a8-mp").resolve(weights)
    eight = {path for path, rule in rules.items() if rule.weight and rule.weight.bits == 8}
    four = {path for path, rule in rules.items() if rule.weight and rule.weight.bits == 4}
    mlp = {f"blocks/{i}/mlp/{fc}" for i in range(28) for fc in ("fc1", "fc2")}
    assert eight == {*mlp, "blocks/23/attn_temp/qkv", "blocks/23/attn_temp/proj"}
    assert len(four) == 28 * 9 - len(eight)


def test_the_released_plan_over_time_gives_each_quarter_of_the_steps_its_bits():
    """20 steps of the original's spacing: the noisiest five have 8 bits everywhere."""
    recipe = load_recipe("w4a8-mp-timestep")
    times = np.round(np.arange(20)[::-1] * 999 / 19)
    np.testing.assert_array_equal(range_index(times, recipe.ranges), np.repeat([3, 2, 1, 0], 5))
    rules = recipe.resolve(abstract(stdit.build, stdit.CONFIGS["stdit-xl-2-16x512x512"]).weights())

    def bits(path):
        rule = rules[path]
        return [dict(rule.weight_in).get(r, rule.weight).bits for r in (3, 2, 1, 0)]

    assert bits("blocks/5/mlp/fc2") == [8, 8, 8, 8]
    assert bits("blocks/23/attn_temp/qkv") == [8, 4, 4, 8]
    assert bits("blocks/22/attn_temp/qkv") == bits("blocks/23/attn/qkv") == [8, 4, 4, 4]
