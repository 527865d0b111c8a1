"""Balancing: what moves between input and weight, and what of it costs nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import PIXART, randomized
from tests.viditq_jax.quant.toy import toy
from viditq_jax.models import dit, pixart
from viditq_jax.net import Net, abstract
from viditq_jax.nn.linear import Modulated, plain
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.fold import fold, folded, sources
from viditq_jax.quant.observe import observe
from viditq_jax.quant.prepare.balance import Options, balance_scale, fit
from viditq_jax.quant.qweight import QWeight
from viditq_jax.quant.recipe import Recipe, RecipeError, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats, Stats

W8, A8 = Spec.parse("int8/channel/asym"), Spec.parse("int8/token")


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


X = normal(0, 2, 16, 32) * jnp.geomspace(0.1, 20, 32)
WEIGHT = normal(1, 24, 32) * jnp.geomspace(3, 0.1, 32)
NOISE, TEXT = normal(2, 2, 8, 8, 4), normal(3, 2, 12, 16)
DIT = dit.Config(width=32, depth=1, heads=2, input_size=8, classes=10)
EPS = 2.0**-24


def test_the_scale_is_that_of_the_worked_example():
    """alpha 0.75 of SmoothQuant is 0.25 of the second release, whose factor multiplies: m = 1 / s."""
    weight = jnp.asarray([[1, -2, 0.5, 4], [0.25, 3, -0.5, -1]])
    amax = jnp.asarray([8, 1, 0.5, 2])
    s = balance_scale(amax, jnp.abs(weight).max(0), 0.75)
    np.testing.assert_allclose(s, [4.7568283, 0.7598357, 0.7071068, 1.1892072], rtol=1e-6)
    m = jnp.abs(weight).max(0) ** 0.25 / amax**0.75
    np.testing.assert_allclose(m, 1 / s, rtol=1e-6)


@pytest.mark.parametrize("statistic", ["max", "moving", "initial"])
@pytest.mark.parametrize("alpha", [0.0, 0.11, 0.5, 1.0])
def test_a_balance_leaves_the_product_unchanged(alpha, statistic):
    stats = LayerStats.empty(32).update(X, initial=True)
    step = fit(WEIGHT, stats, Options(alpha, statistic))
    y, expected = step.inputs(X) @ step.weight(WEIGHT).T, X @ WEIGHT.T
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()


def test_alpha_1_flattens_the_input_and_alpha_0_the_weight():
    stats = LayerStats.empty(32).update(X)
    flat = fit(WEIGHT, stats, Options(1.0)).inputs(X)
    np.testing.assert_allclose(jnp.abs(flat).max((0, 1)), 1, rtol=1e-5)
    flat = fit(WEIGHT, stats, Options(0.0)).weight(WEIGHT)
    np.testing.assert_allclose(jnp.abs(flat).max(0), 1, rtol=1e-5)


def test_dead_channels_and_dead_layers_have_finite_factors():
    """A zero maximum was once a division by zero, or a factor of 1e5."""
    for x, weight in ((X.at[..., 3].set(0), WEIGHT.at[:, 4].set(0)), (0 * X, 0 * WEIGHT)):
        for alpha in (0.0, 0.5, 1.0):
            scale = np.asarray(fit(weight, LayerStats.empty(32).update(x), Options(alpha)).scale)
            assert np.isfinite(scale).all()
            assert (scale > 0).all()
            assert scale.max() / scale.min() <= 1e3 * 1e3  # the floor of input and weight


def test_the_balance_of_a_modulated_input_goes_into_its_modulation():
    """LN, (1 + scale) / s, shift / s equals LN, modulate, / s."""
    x, shift, scale = normal(4, 2, 5, 32), normal(5, 2, 1, 32), normal(6, 2, 1, 32)
    s = jnp.geomspace(0.01, 100, 32)
    given = Modulated(x, shift, scale)
    np.testing.assert_allclose(given.float32(s) * s, plain(given), rtol=8 * EPS, atol=1e-6)


def dit_net() -> Net:
    return randomized(abstract(dit.build, DIT), 1)


def pixart_net(**fields) -> Net:
    return randomized(abstract(pixart.build, dataclasses.replace(PIXART, **{"depth": 1, **fields})), 1)


def forward(net: Net) -> jax.Array:
    t = jnp.asarray([3.0, 700.0])
    if "y_embedder/y_proj/fc1" not in net.weights():
        return net(NOISE, t, jnp.asarray([1, 4]))
    return net(NOISE, t, net.call("encode_prompt", TEXT, jnp.arange(12) < jnp.asarray([[5], [12]])))


@jax.jit
def looked_at(net: Net) -> tuple[jax.Array, Stats]:
    return observe(net, forward)


def balanced(alpha=0.3, prepare=(), **fields) -> Recipe:
    steps = (f"balance:alpha={alpha}", *prepare)
    return Recipe((Rule(("blocks/*",), W8, A8, prepare=steps, **fields),))


NETS = {"dit": dit_net, "pixart": pixart_net, "compressed": lambda: pixart_net(kv_compress=(0,))}


@pytest.mark.parametrize("name", NETS)
def test_folding_leaves_the_float_output_unchanged(name):
    net = NETS[name]()
    expected, stats = looked_at(net)
    rules = balanced().resolve(net.weights())
    changed, after = fold(net, rules, stats)
    y, seen = looked_at(changed)
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    for path in folded(net, rules):
        assert not np.array_equal(changed.weights()[path], net.weights()[path])
        np.testing.assert_allclose(after[path].absmax, seen[path].absmax, rtol=1e-4)


def test_output_projections_take_their_scale_from_the_values_before():
    assert {path: tuple(source) for path, source in sources(dit_net()).items()} == {
        "blocks/0/attn/proj": ("blocks/0/attn/qkv", 64)
    }
    found = sources(pixart_net(kv_compress=(1,), depth=2))
    assert found["blocks/1/cross_attn/proj"] == ("blocks/1/cross_attn/kv_linear", 32)
    assert "blocks/1/attn/proj" not in found  # its values are normalized
    assert "blocks/0/attn/proj" in found


@pytest.mark.parametrize("prepare", [(), ("hadamard:block=16,regular=true",)])
def test_a_folded_layer_holds_no_balance_and_the_output_stays_near(prepare):
    net = pixart_net()
    expected, stats = looked_at(net)
    quantized = quantize(net, balanced(prepare=prepare), stats)
    weights = quantized.weights()
    assert [len(weights[f"blocks/0/{path}"].prepare) for path in ("attn/proj", "attn/qkv")] == [
        len(prepare), 1 + len(prepare),
    ]  # fmt: skip
    error = np.linalg.norm(jax.jit(forward)(quantized) - expected) / np.linalg.norm(expected)
    assert 0 < error < 0.03  # 8 bits: a step of 1/127 of the largest, seven layers after each other


def test_a_balance_stays_with_its_layer_where_the_values_are_not_quantized():
    """In bfloat16 the values' weight would be rounded anew."""
    net = pixart_net()
    _, stats = looked_at(net)
    only_proj = Recipe((Rule(("*/attn/proj",), W8, A8, prepare=("balance:alpha=0.5",)),))
    changed = quantize(net, only_proj, stats).weights()
    assert isinstance(changed["blocks/0/attn/proj"], QWeight)
    assert len(changed["blocks/0/attn/proj"].prepare) == 1
    assert changed["blocks/0/attn/qkv"] is net.weights()["blocks/0/attn/qkv"]


def test_a_rotation_before_a_balance_is_refused_with_the_order():
    net = toy()
    _, stats = observe(net, lambda net: net(X[..., :32]))
    wrong = Recipe((Rule(("fc1",), W8, A8, prepare=("hadamard", "balance:alpha=0.5")),))
    with pytest.raises(ValueError, match=r"fc1: balance needs the statistics .* before a rotation"):
        quantize(net, wrong, stats)


def test_statistics_of_other_ranges_are_refused():
    net = toy()
    _, stats = observe(net, lambda net: net(X))
    two = Recipe((Rule(("fc1",), W8, A8, prepare=("balance:alpha=0.5,ranges=true",)),), ranges=(501,))
    with pytest.raises(RecipeError, match="fc1: 1 ranges instead of 2"):
        quantize(net, two, stats)
