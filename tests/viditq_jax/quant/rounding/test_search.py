"""Range search."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.viditq_jax.quant.correlated import correlated
from viditq_jax.quant.rounding import nearest, search
from viditq_jax.quant.spec import Spec

FEW = search.Options(steps=8)


def cost(weight, q, norm=2.0, importance=1.0) -> np.ndarray:
    """Of each group of those who share a scale."""
    error = np.abs(np.asarray(q.dequantize(), np.float64) - np.asarray(weight, np.float64)) ** norm
    return (importance * error).reshape(*q.scale.shape, -1).sum(-1)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    text=st.sampled_from(["int2/channel", "int4/group32/asym", "int4/tensor"]),
    weighed=st.booleans(),
)
def test_no_group_is_worse_than_by_nearest_rounding(seed, text, weighed):
    """Up to the float32 sums of 192 terms that decide, 192 * 2**-24, and as much for the terms."""
    spec = Spec.parse(text)
    weight, gram = correlated(3, 64, seed=seed)
    gram = gram if weighed else jnp.eye(64)
    importance = np.asarray(jnp.diag(gram))
    found = search.fit(weight, spec, gram, FEW)
    before = cost(weight, nearest.fit(weight, spec), importance=importance)
    assert np.all(cost(weight, found, importance=importance) <= before * (1 + 2.0**-14))


def test_a_row_of_one_outlier_gives_it_up_where_that_pays():
    """Codes of 2 bits, symmetric: -1, 0, 1 times the range. 62 numbers 0.6 and two of +-1.

    Range 1: 62 errors of 0.4, squared 9.92. Range r: the outliers are clipped, 2 (1 - r)^2 + 62 (r - 0.6)^2,
    least at r = (2 + 62 * 0.6) / 64 = 0.6125. Of the 71 factors 1, 0.99, ..., 0.3 that is 0.61.
    """
    weight = jnp.full((1, 64), 0.6).at[0, 0].set(1.0).at[0, 1].set(-1.0)
    q = search.fit(weight, Spec.parse("int2/channel"), None, search.Options(steps=71))
    np.testing.assert_allclose(q.scale, 0.61, rtol=1e-6)
    np.testing.assert_allclose(cost(weight, q), 2 * 0.39**2 + 62 * 0.01**2, rtol=1e-4)


def test_every_group_finds_its_own_range():
    """The released code takes one factor for all (D6)."""
    weight, _ = correlated()
    spec = Spec.parse("int3/group32")
    scale = search.fit(weight, spec).scale
    assert len(np.unique(np.round(scale / nearest.fit(weight, spec).scale, 4))) > 8
    changed = search.fit(weight.at[0, :32].set(weight[0, :32] ** 3), spec).scale
    np.testing.assert_array_equal(np.argwhere(changed != scale), [[0, 0]])


def test_the_bits_of_the_spec_decide_how_far_ranges_shrink():
    """Steps cost less at many bits, so there is less to win by clipping; a search at other bits is D6."""
    weight, _ = correlated(32, 256)
    factors = [
        float((search.fit(weight, spec).scale / nearest.fit(weight, spec).scale).mean())
        for spec in (Spec(2, "channel"), Spec(4, "channel"), Spec(8, "channel"))
    ]
    assert factors == sorted(factors)
    assert factors[0] < 0.6 < 0.9 < factors[2] <= 1


def test_inputs_with_energy_are_rounded_better():
    weight, _ = correlated()
    loud = jnp.where(jnp.arange(64) < 8, 100.0, 1.0)
    spec = Spec.parse("int3/channel")
    plain, weighed = search.fit(weight, spec), search.fit(weight, spec, jnp.diag(loud))
    assert cost(weight, weighed, importance=loud).sum() < 0.9 * cost(weight, plain, importance=loud).sum()


def test_a_higher_norm_keeps_more_of_the_range():
    weight, _ = correlated()
    spec = Spec.parse("int3/channel")
    scales = [
        float(search.fit(weight, spec, None, search.Options(norm=norm)).scale.mean()) for norm in (2.0, 4.0)
    ]
    assert scales[0] < scales[1]


@pytest.mark.parametrize("gram", [jnp.zeros((64, 64)), None])
def test_where_no_range_is_better_the_whole_one_stays(gram):
    """A row whose numbers are all codes has no error; inputs that are never seen have none at any range."""
    weight = jnp.tile(jnp.asarray([[-7.0, 3.0, 0.0, 5.0]]), (1, 16))
    q = search.fit(weight, Spec.parse("int4/channel"), gram)
    np.testing.assert_array_equal(q.scale, nearest.fit(weight, Spec.parse("int4/channel")).scale)
    np.testing.assert_array_equal(q.dequantize(), weight)
