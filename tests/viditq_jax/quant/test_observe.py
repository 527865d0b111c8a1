"""Statistics of layer inputs, and the taps that gather them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.viditq_jax.quant.toy import toy
from viditq_jax.quant.observe import observe
from viditq_jax.quant.stats import LayerStats, abstract_stats, merge_stats

X = jax.random.normal(jax.random.key(0), (3, 5, 32)) * jnp.linspace(0.1, 4, 32)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_statistics_are_those_of_the_inputs_and_the_result_is_untouched():
    net = toy()
    y, stats = observe(net, lambda net: net(X))
    np.testing.assert_array_equal(y, net(X))
    assert set(stats) == {"fc1", "fc2"}
    np.testing.assert_array_equal(stats["fc1"].low, X.min((0, 1)))
    np.testing.assert_array_equal(stats["fc1"].high, X.max((0, 1)))
    np.testing.assert_array_equal(stats["fc1"].absmax, jnp.abs(X).max((0, 1)))
    assert stats["fc1"].count == 15


def test_statistics_come_out_of_jit_and_scan_as_values():
    net = toy()
    _, eager = observe(net, lambda net: net(X))
    _, jitted = jax.jit(lambda net: observe(net, lambda net: net(X)))(net)
    np.testing.assert_array_equal(jitted["fc1"].high, eager["fc1"].high)
    empty = {path: LayerStats.empty(weight.shape[1]) for path, weight in net.weights().items()}

    def step(stats, x):
        return merge_stats(stats, observe(net, lambda net: net(x))[1]), None

    scanned, _ = jax.lax.scan(step, empty, X[:, None])
    assert_equal(scanned["fc1"], eager["fc1"])


def test_a_jit_inside_observe_is_refused():
    with pytest.raises(TypeError, match="Observed"):
        observe(toy(), lambda net: jax.jit(lambda net: net(X))(net))


def test_merge_is_associative_and_the_empty_statistics_are_neutral():
    a, b, c = (LayerStats.empty(32).update(x) for x in X)
    assert_equal(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_equal(a.merge(LayerStats.empty(32)), a)
    assert_equal(a.merge(b).merge(c), LayerStats.empty(32).update(X))


def test_every_batch_counts_and_not_the_last_alone():
    """The last calibration batch once won (D4)."""
    _, stats = observe(toy(), lambda net: [net(100 * X), net(X)])
    np.testing.assert_array_equal(stats["fc1"].high, (100 * X).max((0, 1)))
    assert stats["fc1"].count == 30


def test_statistics_of_different_layers_merge_to_those_of_all():
    one = LayerStats.empty(4)
    assert sorted(merge_stats({"b": one}, {"a": one})) == ["a", "b"]


def test_abstract_statistics_have_the_shapes_of_real_ones():
    net = toy()
    _, stats = observe(net, lambda net: net(X))
    assert jax.eval_shape(lambda: stats) == abstract_stats(net)
