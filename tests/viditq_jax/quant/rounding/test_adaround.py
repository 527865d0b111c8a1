"""AdaRound."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.viditq_jax.quant.correlated import correlated
from viditq_jax.quant.rounding import _grid, adaround, nearest, search
from viditq_jax.quant.spec import Spec

QUICK = adaround.Options(iterations=200, range="nearest")


def cost(weight, q, gram) -> float:
    return float(_grid.output_error(weight - q.dequantize(), gram).sum())


@pytest.mark.parametrize("text", ["int4/channel", "int4/group32/asym"])
def test_learned_rounding_changes_codes_and_lowers_the_error(text):
    """In the released code this mode has no effect (D5)."""
    weight, gram = correlated()
    spec = Spec.parse(text)
    q, start = adaround.fit(weight, spec, gram, QUICK), nearest.fit(weight, spec)
    assert np.mean(np.asarray(q.codes() != start.codes())) > 0.05
    assert cost(weight, q, gram) < 0.85 * cost(weight, start, gram)


def test_numbers_go_to_one_of_their_two_neighbours():
    weight, gram = correlated()
    q = adaround.fit(weight, Spec.parse("int4/channel"), gram, QUICK)
    levels = np.asarray(weight / q.scale)
    codes = np.asarray(q.codes())
    # a level that is an integer up to float32 may be taken as the next one
    assert np.all(codes >= np.floor(levels + 1e-5) - (np.abs(levels - np.round(levels)) < 1e-5))
    assert np.all(codes <= np.ceil(levels - 1e-5) + (np.abs(levels - np.round(levels)) < 1e-5))


def test_two_inputs_by_hand():
    """Inputs 1, 1: only the sum of a row counts. 0.4 + 0.35 rounds to 0 + 0 by nearest; best is one up."""
    weight = jnp.asarray([[0.4, 0.35, 7.0, 0.0]])
    gram = jnp.zeros((4, 4)).at[:2, :2].set(1.0)
    q = adaround.fit(weight, Spec.parse("int4/channel"), gram, QUICK)
    assert int(q.codes()[0, :2].sum()) == 1
    np.testing.assert_array_equal(q.codes()[0, 2:], [7, 0])


def test_inputs_that_predict_nothing_are_rounded_to_nearest():
    weight, _ = correlated()
    spec = Spec.parse("int4/channel")
    q = adaround.fit(weight, spec, jnp.diag(jnp.arange(1.0, 65)), QUICK)
    np.testing.assert_array_equal(q.codes(), nearest.fit(weight, spec).codes())


def test_searched_ranges_help():
    weight, gram = correlated()
    spec = Spec.parse("int4/channel")
    searched = adaround.fit(weight, spec, gram, adaround.Options(iterations=200))
    assert cost(weight, searched, gram) < cost(weight, search.fit(weight, spec, gram), gram)
    assert cost(weight, searched, gram) < cost(weight, adaround.fit(weight, spec, gram, QUICK), gram)
