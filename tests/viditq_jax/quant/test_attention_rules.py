"""Recipes that put the attention of chosen modules in 8 bits."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.cli import inspect
from viditq_jax.load import load_pipeline
from viditq_jax.models import dit, pixart, t5
from viditq_jax.net import abstract, initialize
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.attention import AttentionRule, attentions
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule, load_recipe
from viditq_jax.quant.spec import Spec

INT8 = Spec.parse("int8/token")
FLOATS = Rule(("*",), None)
DIT = dit.Config(width=32, depth=3, heads=2, input_size=8, classes=4)


def recipe(*attention, **fields):
    """One that leaves every weight in floats."""
    return Recipe((FLOATS,), attention=attention, **fields)


def model():
    return tiny.randomized(initialize(dit.build, DIT), 1)


def predict(net):
    x = jax.random.normal(jax.random.key(2), (2, 8, 8, 4), jnp.float32)
    return net(x, jnp.asarray([3.0, 700.0]), jnp.asarray([0, 3]))


def test_the_modules_that_can_have_8_bits_are_those_of_self_attention():
    assert attentions(abstract(dit.build, DIT)) == {f"blocks/{i}/attn": None for i in range(3)}
    assert list(attentions(abstract(pixart.build, tiny.PIXART))) == ["blocks/0/attn", "blocks/1/attn"]


def test_the_first_rule_that_matches_wins_and_other_modules_stay_in_floats():
    net = model()
    rules = AttentionRule(("blocks/0/attn",), None), AttentionRule(("blocks/[01]/*",), INT8)
    chosen = quantize(net, recipe(*rules))
    assert attentions(chosen) == {"blocks/0/attn": None, "blocks/1/attn": 8, "blocks/2/attn": None}
    assert attentions(net) == dict.fromkeys(attentions(net))  # the original is untouched
    jax.tree.map(np.testing.assert_array_equal, chosen.params, net.params)


def test_8_bits_change_a_prediction_by_a_little():
    """Scores of this size are off by some hundredths; the softmax is as flat as fresh weights make it."""
    net = model()
    exact, y = predict(net), predict(quantize(net, recipe(AttentionRule(("*",), INT8))))
    error = float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact))
    assert 0 < error < 0.02


def test_a_rule_that_leaves_floats_changes_nothing():
    net = model()
    same = quantize(net, recipe(AttentionRule(("*",), None)))
    assert same.graphdef == net.graphdef
    np.testing.assert_array_equal(predict(same), predict(net))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (AttentionRule(("blocks/*/cross_attn",), INT8),),
            r"attention rule 1: blocks/\*/cross_attn matches none of the 3 attention modules.*blocks/0/attn",
        ),
        (
            (AttentionRule(("*",), INT8), AttentionRule(("*/attn",), INT8)),
            "attention rule 2.*earlier rules take",
        ),
        (
            (AttentionRule(("*",), Spec.parse("int4/token")),),
            "attention rule 1: qk: int4/token; .*int8/token",
        ),
    ],
)
def test_rules_that_cannot_be_are_errors_that_say_what_can(rules, message):
    with pytest.raises(RecipeError, match=message):
        quantize(model(), recipe(*rules))


def test_a_model_whose_attention_is_not_known_is_an_error():
    net = abstract(t5.build, tiny.T5)
    with pytest.raises(RecipeError, match=r"matches none of the 0 attention modules.*nearest: none"):
        quantize(net, recipe(AttentionRule(("*/SelfAttention",), INT8)))
    assert attentions(quantize(net, recipe(AttentionRule(("*",), INT8, optional=True)))) == {}


def test_learned_rounding_and_8_bit_attention_are_refused_together():
    """Rounded queries have no gradient."""
    both = recipe(AttentionRule(("*",), INT8), tuning="brecq")
    assert any("tuning: it follows gradients" in fault for fault in both.faults())


def test_rules_survive_a_file_and_their_faults_are_listed(tmp_path):
    written = recipe(AttentionRule(("*/attn",), INT8, why="short"), AttentionRule(("*",), optional=True))
    written.save(tmp_path / "file.json")
    assert load_recipe(tmp_path / "file.json") == dataclasses.replace(written, name="unnamed")
    bad = {"rules": [FLOATS.to_json()], "attention": [{"match": [], "qk": "int8", "bits": 8}]}
    with pytest.raises(RecipeError) as error:
        Recipe.from_json(bad)
    for part in (
        "attention rule 1: match: give a pattern", "attention rule 1: qk: 'int8' is no number format",
        "attention rule 1: unknown field 'bits'",
    ):  # fmt: skip
        assert part in str(error.value)


def test_an_artifact_keeps_its_8_bit_attention(tmp_path):
    """The packaged recipe, whose MLP has a static scale a range, is the same model when it is loaded."""
    pipeline = tiny.pipeline()
    small = quantize_pipeline(pipeline, load_recipe("w8a8-fast"), ["a red apple", "two blue dogs"], batch=2)
    assert set(attentions(small.denoiser).values()) == {8}
    fc2 = small.denoiser.weights()["blocks/0/mlp/fc2"]
    assert str(fc2.act) == "int8/tensor/asym/static/range"
    assert fc2.act_scale.stacked.shape == (2, 1, 1)
    small.save(tmp_path / "small")
    loaded = load_pipeline(tmp_path / "small")
    assert attentions(loaded.denoiser) == attentions(small.denoiser)
    assert loaded.denoiser.graphdef == small.denoiser.graphdef
    jax.tree.map(np.testing.assert_array_equal, loaded.denoiser.params, small.denoiser.params)
    shown = inspect.run(inspect.Options(str(tmp_path / "small"), layers=True))
    assert re.search(r"blocks/1/attn +queries and keys int8/token", shown)
