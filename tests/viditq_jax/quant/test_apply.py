"""quantize: from a Net and a Recipe to a quantized Net."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import PIXART, randomized
from tests.viditq_jax.quant.toy import toy
from viditq_jax.models import pixart
from viditq_jax.net import Net, abstract, initialize
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.observe import observe
from viditq_jax.quant.qtensor import quantize_tensor
from viditq_jax.quant.qweight import QWeight
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule, load_recipe
from viditq_jax.quant.size import weight_bytes
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats, abstract_stats

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((3, 32), np.float32))
NOISE = jnp.asarray(RNG.standard_normal((2, 8, 8, 4), np.float32))
TEXT = jnp.asarray(RNG.standard_normal((2, 12, 16), np.float32))
W8A8 = (Spec.parse("int8/channel/asym"), Spec.parse("int8/token"))
PACKAGED = ["w8a8", "naive-static-w8a8", "w4a8-naive", "w4a8-group", "fp8", "w4a8-plus"]
CONFIG = dataclasses.replace(PIXART, width=64, heads=2, depth=1, mlp_ratio=2.0)  # width: groups of 64


def recipe(weight, act=None, match=("*",)):
    return Recipe((Rule(match, weight and Spec.parse(weight), act and Spec.parse(act)),))


def tiny_pixart() -> Net:
    return randomized(abstract(pixart.build, CONFIG), 1)


def forward(net: Net) -> jax.Array:
    prompt = net.call("encode_prompt", TEXT, jnp.arange(12) < jnp.asarray([[5], [12]]))
    return net(NOISE, jnp.asarray([3.0, 700.0]), prompt)


def shapes(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def test_named_layers_change_and_the_others_and_the_graphdef_stay():
    net = toy()
    quantized = quantize(net, Recipe((Rule(("fc1",), *W8A8),)))
    assert quantized.graphdef == net.graphdef
    assert isinstance(quantized.weights()["fc1"], QWeight)
    assert quantized.weights()["fc2"] is net.weights()["fc2"]
    assert isinstance(net.weights()["fc1"], jax.Array)  # the original is untouched


@pytest.mark.parametrize("text", ["int8/channel", "int4/group32/asym"])
def test_a_weight_is_quantized_once(text):
    """It was once rounded twice (D8): the codes are those of the weight, and a second time is refused."""
    net = toy()
    quantized = quantize(net, recipe(text))
    once = quantize_tensor(net.weights()["fc1"], Spec.parse(text))
    jax.tree.map(np.testing.assert_array_equal, quantized.weights()["fc1"].weight, once)
    with pytest.raises(RecipeError, match="quantized already"):
        quantize(quantized, recipe(text))


def test_other_bits_give_what_fresh_bits_give():
    """Scales once survived a change of bits (D3, D19)."""
    net = toy()
    first = quantize(net, recipe("int4/channel/asym", "int8/token"))(X)
    quantize(net, recipe("int8/channel/asym", "int8/token"))
    np.testing.assert_array_equal(quantize(net, recipe("int4/channel/asym", "int8/token"))(X), first)


def test_more_bits_are_closer():
    net = toy()
    errors = [
        float(jnp.square(quantize(net, recipe(weight, "int8/token"))(X) - net(X)).mean())
        for weight in ("int8/channel/asym", "int6/channel/asym", "int4/channel/asym", "int3/channel")
    ]
    assert errors == sorted(errors)


def test_the_float_recipe_changes_nothing():
    net = toy()
    assert all(
        a is b
        for a, b in zip(jax.tree.leaves(net), jax.tree.leaves(quantize(net, recipe(None))), strict=True)
    )


def test_static_scales_need_statistics_of_every_layer_they_are_for():
    net = toy()
    with pytest.raises(RecipeError, match="2 of its layers have no statistics: fc1; fc2"):
        quantize(net, recipe("int8/channel", "int8/tensor/static"))
    _, stats = observe(net, lambda net: net(X))
    del stats["fc1"]
    with pytest.raises(RecipeError, match=r"1 of its layers.*: fc1"):
        quantize(net, recipe("int8/channel", "int8/tensor/static"), stats)


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_computed():
    with pytest.raises(
        RecipeError, match="rule 1: fc1: int4/group64: groups of 64 do not divide its 32 inputs"
    ):
        quantize(toy(), recipe("int4/group64"))


@pytest.fixture(scope="module")
def calibrated():
    net = tiny_pixart()
    empty = {path: LayerStats.empty(w.shape[1], gram=True) for path, w in net.weights().items()}
    return net, *jax.jit(lambda net: observe(net, forward, empty))(net)


@pytest.mark.parametrize("name", PACKAGED)
def test_shapes_of_a_quantized_net_follow_from_shapes_alone(calibrated, name):
    """So an artifact is restored into quantize(abstract net, recipe)."""
    net, _, stats = calibrated
    real = quantize(net, load_recipe(name), stats)
    outline = jax.eval_shape(lambda: net)
    alone = quantize(outline, load_recipe(name))
    assert jax.tree.structure(alone) == jax.tree.structure(real)
    assert shapes(alone) == shapes(real)
    traced = jax.eval_shape(
        lambda net, stats: quantize(net, load_recipe(name), stats), outline, abstract_stats(outline)
    )
    assert shapes(traced) == shapes(real)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("w8a8", 0.03), ("naive-static-w8a8", 0.06), ("w4a8-group", 0.35), ("w4a8-naive", 0.35)],
)
def test_a_tiny_pixart_runs_jitted_and_stays_near_the_unquantized_one(calibrated, name, bound):
    """A 4-bit step is about 5 sigma / 15, its rounding 1 / sqrt(12) of that: 0.1 a layer.

    A few layers follow each other; 8 bits are 16 times finer.
    """
    net, expected, stats = calibrated
    y = jax.jit(forward)(quantize(net, load_recipe(name), stats))
    error = jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected)
    assert 0 < error < bound


@pytest.mark.parametrize("name", ["w8a8", "w4a8-group"])
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(calibrated, name):
    """One scale was once shared by a token position of all samples (D1)."""
    net, _, stats = calibrated
    run = jax.jit(lambda net, x, y: net(x, jnp.full(len(x), 9.0), net.call("encode_prompt", y)))
    quantized = quantize(net, load_recipe(name), stats)
    disturbed = run(quantized, NOISE.at[1].multiply(100), TEXT.at[1].multiply(-3))
    np.testing.assert_array_equal(run(quantized, NOISE, TEXT)[0], disturbed[0])


@pytest.mark.parametrize(
    ("name", "most"),
    [("w8a8", 0.53), ("naive-static-w8a8", 0.53), ("w4a8-naive", 0.29), ("w4a8-group", 0.29)],
)
def test_weight_bytes_keep_what_the_recipe_promises_at_width_192(name, most):
    config = dataclasses.replace(CONFIG, width=192, heads=3, mlp_ratio=4.0)
    packaged = load_recipe(name)
    sizes = weight_bytes(quantize(jax.eval_shape(lambda: initialize(pixart.build, config)), packaged))
    assert len(sizes) == 7
    assert packaged.expect["weight_bytes_vs_bfloat16"] <= most
    for path, size in sizes.items():
        n, k = {"qkv": (576, 192), "kv_linear": (384, 192), "fc1": (768, 192), "fc2": (192, 768)}.get(
            path.split("/")[-1], (192, 192)
        )
        assert size.dense == 2 * n * k
        assert size.stored <= packaged.expect["weight_bytes_vs_bfloat16"] * size.dense


def test_statistics_of_another_model_or_not_finite_are_refused_by_layer():
    net, static = toy(), recipe("int8/channel", "int8/tensor/static")
    _, stats = observe(net, lambda net: net(X))
    with pytest.raises(RecipeError, match="fc1: 64 inputs instead of 32"):
        quantize(net, static, {**stats, "fc1": stats["fc2"]})
    broken = dataclasses.replace(stats["fc2"], total=stats["fc2"].total.at[0, 0].set(jnp.nan))
    with pytest.raises(RecipeError, match="fc2: numbers that are not finite"):
        quantize(net, static, {**stats, "fc2": broken})


def test_asymmetric_inputs_have_an_outline_too():
    net, zeros = toy(), recipe("int4/group32/asym", "int8/token/asym")
    assert shapes(quantize(jax.eval_shape(lambda: net), zeros)) == shapes(quantize(net, zeros))


def test_weight_bytes_count_everything_a_layer_holds():
    sizes = weight_bytes(quantize(toy(), recipe("int4/group32/asym", "int8/token")))
    assert sizes["fc2"].stored == 16 * 64 // 2 + 16 * 2 * (4 + 1)  # codes; a scale and a zero point a group


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    net, path = toy(), "fc2"
    broken = net.map_weights(lambda name, weight: weight.at[0, 0].set(jnp.nan) if name == path else weight)
    with pytest.raises(RecipeError, match="weights of fc2 are not finite"):
        quantize(broken, recipe("int8/channel", "int8/token"))
