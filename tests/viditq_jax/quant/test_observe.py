"""Statistics of layer inputs, and the taps that gather them."""

from functools import partial

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
    seen = stats["fc1"]
    np.testing.assert_array_equal(seen.low[0], X.min((0, 1)))
    np.testing.assert_array_equal(seen.high[0], X.max((0, 1)))
    np.testing.assert_array_equal(seen.absmax[0], jnp.abs(X).max((0, 1)))
    np.testing.assert_allclose(seen.mean[0], jnp.abs(X).mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(seen.incoherence, jnp.abs(X).max() / jnp.abs(X).mean(), rtol=1e-6)
    np.testing.assert_array_equal(seen.moving.value[0], jnp.abs(X).max(1).mean(0))  # the first as it is
    assert seen.count == 15
    assert seen.gram is None


def test_the_gram_matrix_is_that_of_all_rows():
    stats = {"fc1": LayerStats.empty(32, gram=True)}
    _, stats = observe(toy(), lambda net: [net(X), net(2 * X)], stats)
    rows = np.asarray(X, np.float64).reshape(-1, 32)
    np.testing.assert_allclose(stats["fc1"].gram, 5 * rows.T @ rows, rtol=1e-5, atol=1e-4)


def test_each_range_has_its_own_statistics_and_inputs_of_all_ranges_count_in_each():
    stats = {path: LayerStats.empty(k, 3) for path, k in (("fc1", 32), ("fc2", 64))}
    net = toy()
    _, stats = observe(net, lambda net: net(X), stats, r=jnp.int32(2), initial=jnp.bool_(True))
    _, stats = observe(net, lambda net: net(2 * X), stats, r=0)
    np.testing.assert_array_equal(stats["fc1"].high[2], X.max((0, 1)))
    np.testing.assert_array_equal(stats["fc1"].high[0], 2 * X.max((0, 1)))
    np.testing.assert_array_equal(stats["fc1"].initial, jnp.abs(X).max((0, 1)))
    np.testing.assert_array_equal(stats["fc1"].count, [15, 0, 15])
    _, stats = observe(net, lambda net: net(3 * X), stats, r=slice(None))
    np.testing.assert_array_equal(stats["fc1"].high, jnp.tile(3 * X.max((0, 1)), (3, 1)))
    np.testing.assert_array_equal(stats["fc1"].moving.calls, [2, 1, 2])


def test_the_moving_average_is_the_release_s():
    """First as it is, then 0.95 old + 0.05 new; of the largest over tokens, averaged over samples."""
    layer, expected = LayerStats.empty(32), None
    for scale in (1.0, 7.0, 0.2):
        layer = layer.update(scale * X)
        value = np.asarray(scale * jnp.abs(X).max(1).mean(0), np.float64)
        expected = value if expected is None else 0.95 * expected + 0.05 * value
    np.testing.assert_allclose(layer.moving.value[0], expected, rtol=1e-6)


def test_statistics_come_out_of_jit_and_scan_as_values():
    net = toy()
    _, eager = observe(net, lambda net: net(X))
    _, jitted = jax.jit(lambda net: observe(net, lambda net: net(X)))(net)
    np.testing.assert_array_equal(jitted["fc1"].high, eager["fc1"].high)
    empty = {path: LayerStats.empty(weight.shape[1]) for path, weight in net.weights().items()}

    def step(stats, x):
        return observe(net, lambda net: net(x), stats)[1], None

    scanned, _ = jax.lax.scan(step, empty, X[:, None])
    np.testing.assert_array_equal(scanned["fc1"].high, eager["fc1"].high)
    assert scanned["fc1"].count == eager["fc1"].count


def test_a_jit_inside_observe_is_refused():
    with pytest.raises(TypeError, match="Observed"):
        observe(toy(), lambda net: jax.jit(lambda net: net(X))(net))


def test_merge_is_associative_and_the_empty_statistics_are_neutral():
    empty = LayerStats.empty(32, 2, gram=True)
    a, b, c = (empty.update(x[None], r) for x, r in zip(X, (0, 1, 1), strict=True))
    close = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))
    close(a.merge(b).merge(c), a.merge(b.merge(c)))
    close(a.merge(b).merge(c), empty.update(X[:1], 0).update(X[1:2], 1).update(X[2:], 1))
    assert_equal(a.merge(empty), a)
    assert_equal(empty.merge(a), a)


def test_every_batch_counts_and_not_the_last_alone():
    """The last calibration batch once won (D4)."""
    _, stats = observe(toy(), lambda net: [net(100 * X), net(X)])
    np.testing.assert_array_equal(stats["fc1"].high[0], (100 * X).max((0, 1)))
    assert stats["fc1"].count == 30


def test_statistics_of_different_layers_merge_to_those_of_all():
    one = LayerStats.empty(4)
    assert sorted(merge_stats({"b": one}, {"a": one})) == ["a", "b"]


def test_abstract_statistics_have_the_shapes_of_real_ones():
    net = toy()
    empty = {path: LayerStats.empty(w.shape[1], 2, gram=True) for path, w in net.weights().items()}
    _, stats = observe(net, lambda net: net(X), empty)
    assert jax.eval_shape(lambda: stats) == abstract_stats(net, 2)
