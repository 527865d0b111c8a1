"""Widths as data: the numbers are those of the packed plan, and no choice of widths compiles anything."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import PIXART, randomized
from viditq_jax.models import pixart
from viditq_jax.net import abstract
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.ranges import at_range
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule
from viditq_jax.quant.search.allocate import plan
from viditq_jax.quant.search.table import Layer, Table
from viditq_jax.quant.search.variants import Variants, searched, with_bits
from viditq_jax.quant.size import weight_bytes
from viditq_jax.quant.spec import Spec

NET = randomized(abstract(pixart.build, dataclasses.replace(PIXART, depth=1, width=64)), 1)
RNG = np.random.default_rng(0)
NOISE, TEXT = (jnp.asarray(RNG.standard_normal(shape, np.float32)) for shape in ((2, 8, 8, 4), (2, 12, 16)))
RULES = (
    Rule(("*/cross_attn/*",), None, why="stays in floats"),
    Rule(("blocks/*",), Spec.parse("int4/channel/asym"), Spec.parse("int8/token/asym"), ("hadamard",)),
)
RECIPE = Recipe(RULES, name="base")


@jax.jit
def run(net):
    prompt = net.call("encode_prompt", TEXT, jnp.arange(12) < jnp.asarray([[5], [12]]))
    return net(NOISE, jnp.asarray([3.0, 700.0]), prompt)


@jax.jit
def alone(net):
    """`run` with a count of its own."""
    return run.__wrapped__(net)


@pytest.fixture(scope="module")
def variants() -> Variants:
    return Variants.of(NET, RECIPE, (4, 8))


def test_the_layers_with_integers_are_searched(variants):
    assert variants.layers == tuple(searched(RECIPE, NET))
    assert len(variants.layers) == 4
    assert not any("cross_attn" in path for path in variants.layers)


def test_any_mixture_equals_its_packed_plan_and_compiles_nothing(variants):
    """Sums of products are equal integers; XLA may fuse the float ends of packed products otherwise."""
    run(variants.chosen(dict.fromkeys(variants.layers, 8)))
    compiled = run._cache_size()
    table = Table(RECIPE, (4, 8), {path: Layer(1, "visual", {}) for path in variants.layers})
    for fewer in (variants.layers[:1], variants.layers[1:3], variants.layers):
        bits = {path: 4 if path in fewer else 8 for path in variants.layers}
        found = run(variants.chosen(bits))
        assert run._cache_size() == compiled
        packed = alone(quantize(NET, plan(table, bits, name="plan")))
        np.testing.assert_allclose(found, packed, rtol=1e-5, atol=1e-5 * float(jnp.abs(packed).max()))


def test_fewer_bits_change_the_output_and_other_layers_are_the_same_arrays(variants):
    most = variants.chosen(dict.fromkeys(variants.layers, 8))
    one = variants.chosen({**dict.fromkeys(variants.layers, 8), variants.layers[0]: 4})
    assert not np.array_equal(run(most), run(one))
    codes = [{p: net.weights()[p].weight.values for p in variants.layers} for net in (one, most)]
    same = {p for p in variants.layers if codes[0][p] is codes[1][p]}
    assert same == set(variants.layers[1:])


def test_ranges_have_their_own_widths(variants):
    bits = dict.fromkeys(variants.layers, (8, 4))
    net = variants.chosen(bits)
    for r, b in enumerate((8, 4)):
        want = variants.nets[b].weights()[variants.layers[0]].weight
        got = at_range(net, r).weights()[variants.layers[0]].weight
        np.testing.assert_array_equal(got.values, want.values)


def test_weights_alone_are_those_of_the_plan_and_inputs_are_not_rounded(variants):
    """8 bits are then 2^-8 of a row's range away at most, and nothing is noise: half the step, half the
    error.
    """
    exact, path = run(NET), variants.layers[0]
    alone = variants.weights_alone()
    most, fewest = (alone.nets[b].weights()[path].weight for b in (8, 4))
    np.testing.assert_array_equal(most.values, variants.nets[8].weights()[path].weight.values)
    np.testing.assert_array_equal(fewest.values, variants.nets[4].weights()[path].weight.values)
    errors = {
        b: float(jnp.abs(run(alone.chosen(dict.fromkeys(alone.layers, b))) - exact).max()) for b in (4, 8)
    }
    assert 0 < errors[8] < errors[4] / 8


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_are_those_of_the_plan_and_not_of_the_variants(variants, bits):
    stored = weight_bytes(quantize(NET, with_bits(RECIPE, bits)))
    for path in variants.layers:
        assert variants.stored_bytes(path, bits) == stored[path].stored


def test_every_layer_needs_its_bits(variants):
    with pytest.raises(ValueError, match="1 layers have no bits"):
        variants.chosen(dict.fromkeys(variants.layers[1:], 8))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (Recipe((Rule(("blocks/*",), None),)), "no bits to choose"),
        (
            Recipe((Rule(("blocks/*",), Spec.parse("fp8/channel"), Spec.parse("fp8/token")),)),
            "no bits to choose",
        ),
        (
            Recipe((dataclasses.replace(RULES[1], prepare=("balance:ranges=true",)),), ranges=(500,)),
            "search with one that has none",
        ),
        (Recipe((RULES[1],), tuning="brecq"), "drop the tuning"),
    ],
)
def test_recipes_that_leave_nothing_to_search_are_refused(recipe, words):
    with pytest.raises(RecipeError, match=words):
        searched(recipe, NET)
