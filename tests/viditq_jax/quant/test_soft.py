"""SoftRounded: between the float weight and a QWeight, and differentiable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.quant.low_rank import LowRank
from viditq_jax.quant.prepare import balance
from viditq_jax.quant.qtensor import quantize_tensor
from viditq_jax.quant.qweight import QWeight, code_sums, quantized_weight
from viditq_jax.quant.rounding.adaround import undecided
from viditq_jax.quant.soft import soft_rounded
from viditq_jax.quant.spec import Spec
from viditq_jax.quant.stats import LayerStats

W = jax.random.normal(jax.random.key(0), (16, 32))
X = jax.random.normal(jax.random.key(1), (3, 5, 32))
BIAS = jax.random.normal(jax.random.key(2), (16,))
STEP = balance.Balance(jnp.exp(0.3 * jax.random.normal(jax.random.key(3), (32,))))
BRANCH = LowRank(jnp.ones((1, 32), jnp.bfloat16) / 32, jnp.ones((16, 1), jnp.bfloat16))


def qweight(weight: str, act: str | None, *, plain: bool = False) -> QWeight:
    """Nearest rounding of W, balanced and beside a branch unless it is plain."""
    prepare, branch = ((), None) if plain else ((STEP,), BRANCH)
    prepared = W if plain else STEP.weight(W) - BRANCH.matrix()
    stats = LayerStats.empty(32).update(X if plain else STEP.inputs(X))
    spec = act and Spec.parse(act)
    return quantized_weight(
        quantize_tensor(prepared, Spec.parse(weight)), spec, stats, prepare=prepare, branch=branch
    )


FORMATS = [
    ("int4/channel/asym", "int8/token"),
    ("int8/channel", "int8/token/asym"),
    ("int4/group32/asym", "int8/tensor/asym/static"),
    ("int8/tensor", "int8/tensor/static"),
    ("int3/channel", None),
]


@pytest.mark.parametrize(("weight", "act"), FORMATS)
def test_at_the_start_the_numbers_are_those_of_the_float_weight(weight, act):
    """Up to the clipping of zero points, which moves the ends of a range by half a scale at most."""
    q = qweight(weight, act)
    soft = soft_rounded(q, W, train_scale=False)
    prepared = STEP.weight(W) - BRANCH.matrix()
    lost = np.abs(soft.matrix() - prepared) / np.asarray(q.weight.scale).max()
    assert lost.max() < 0.5 + 1e-4
    assert np.median(lost) < 1e-4  # float32: codes up to 255, times a few roundings of 6e-8


@pytest.mark.parametrize(("weight", "act"), FORMATS)
def test_decided_codes_compute_what_the_qweight_computes(weight, act):
    """Both round inputs alike; sums differ by float32 roundings, 32 terms a few units large."""
    q = qweight(weight, act)
    soft = soft_rounded(q, W, train_scale=False)
    v = jnp.where(jax.random.bernoulli(jax.random.key(4), shape=(16, 32)), 100.0, -100.0)
    soft = dataclasses.replace(soft, learned=soft.learned._replace(v=v))
    np.testing.assert_allclose(soft.linear(X, BIAS), soft.hard().linear(X, BIAS), atol=1e-4)


@pytest.mark.parametrize(("weight", "act"), FORMATS)
def test_hard_has_the_layout_of_before_and_starts_as_nearest(weight, act):
    q = qweight(weight, act)
    hard = soft_rounded(q, W, train_scale=True).hard()
    jax.tree.map(np.testing.assert_array_equal, hard, q)
    assert jax.tree.structure(hard) == jax.tree.structure(q)
    other = soft_rounded(q, W, train_scale=True)
    flipped = dataclasses.replace(other, learned=other.learned._replace(v=-other.learned.v)).hard()
    assert not np.array_equal(flipped.weight.codes(), q.weight.codes())
    if q.weight_sum is not None:
        np.testing.assert_array_equal(flipped.weight_sum, code_sums(flipped.weight))


def test_the_current_code_is_always_a_choice():
    """Also far from the float weight: codes by other methods than nearest are not lost."""
    q = qweight("int4/channel/asym", None, plain=True)
    elsewhere = soft_rounded(q, W + 2 * q.weight.scale, train_scale=False)
    np.testing.assert_array_equal(elsewhere.below, q.weight.codes())
    np.testing.assert_allclose(elsewhere.up(), 1, atol=1e-6)


def test_the_gradient_of_a_static_scale_is_that_of_learned_step_size():
    """d (round(x / s) s) / ds is round(x / s) - x / s inside, and the last code beyond it."""
    q = qweight("int8/channel", "int8/tensor/static", plain=True)
    q = dataclasses.replace(q, act_scale=jnp.full((1, 1), 0.1))
    soft = soft_rounded(q, W, train_scale=True)

    def total(growth: jax.Array, x: float) -> jax.Array:
        grown = dataclasses.replace(soft, learned=soft.learned._replace(growth=growth))
        return grown._quantized(jnp.full((1, 1), x)).sum()

    gradient = jax.grad(total)
    at = {x: float(gradient(jnp.zeros((1, 1)), x)[0, 0]) / 0.1 for x in (0.27, 0.52, 99.0)}
    # by the log of the scale, so 0.1 times as much; 2.7 and 5.2 are rounded in float32
    np.testing.assert_allclose([at[0.27], at[0.52], at[99.0]], [0.3, -0.2, 127], atol=1e-4)


def test_the_regulariser_is_zero_for_decided_numbers_and_before_the_warmup():
    h = jnp.asarray([[0.0, 1.0, 0.5, 0.25]])
    assert float(undecided(h, jnp.float32(0.1), 0.2)) == 0
    # 1 - |2h - 1|^beta of 0.5 is 1; of 0.25 it is 1 - 2^-beta, with beta 10 at first and 2 from 90 % on
    np.testing.assert_allclose(undecided(h, jnp.float32(0.2), 0.2), 2 - 2**-10, rtol=1e-6)
    np.testing.assert_allclose(undecided(h, jnp.float32(0.95), 0.2), 2 - 2**-2, rtol=1e-6)
