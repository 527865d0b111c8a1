"""GPTQ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.viditq_jax.quant.correlated import correlated
from viditq_jax.quant.rounding import _grid, gptq, nearest, search
from viditq_jax.quant.spec import Spec

ORIGINAL = gptq.Options(range="nearest", order=False, static_groups=False)


def textbook(weight, spec, gram, *, damping, scale, zero) -> np.ndarray:
    """The paper's loop over columns in float64: an error, divided by the diagonal of the upper Cholesky
    factor of the inverse Hessian, is passed on along that factor's row.
    """
    w = np.array(weight, np.float64)
    k = w.shape[1]
    h = np.asarray(gram, np.float64)
    h = h + damping * np.trace(h) / k * np.eye(k)
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    low, high = _grid.code_range(spec)
    codes = np.zeros(w.shape, int)
    for j in range(k):
        codes[:, j] = np.clip(np.round(w[:, j] / scale[:, j]) + zero[:, j], low, high)
        error = (w[:, j] - (codes[:, j] - zero[:, j]) * scale[:, j]) / u[j, j]
        w[:, j:] -= error[:, None] * u[j, j:]
    return codes


def cost(weight, q, gram) -> float:
    return float(_grid.output_error(weight - q.dequantize(), gram).sum())


@pytest.mark.parametrize("text", ["int8/channel", "int4/tensor", "int4/group64/asym"])
def test_codes_are_those_of_the_loop_over_columns(text):
    """k = 192 takes three blocks. None of 1536 numbers is so near to a tie that float32 decides otherwise."""
    spec = Spec.parse(text)
    weight, gram = correlated(8, 192, rows=400)
    q = gptq.fit(weight, spec, gram, gptq.Options(range="nearest", order=False))
    start = nearest.fit(weight, spec)
    scale, zero = (
        np.asarray(jnp.zeros((1, 1)) if shared is None else shared, np.float64)
        for shared in (start.scale, start.zero)
    )
    scale, zero = (
        np.asarray(_grid.columns_of(jnp.asarray(v, jnp.float32), weight.shape)) for v in (scale, zero)
    )
    expected = textbook(weight, spec, gram, damping=0.01, scale=scale, zero=zero)
    kept = np.asarray((q.codes() != start.codes()).any(1))  # rows that clipping did not spoil
    assert kept.any()
    np.testing.assert_array_equal(np.asarray(q.codes())[kept], expected[kept])


def test_two_inputs_by_hand():
    """Inputs 1, 1: only the sum counts. 0.4 + 0.4 rounds to 0 + 0 by nearest, and to 0 + 1 by GPTQ.

    The scale is 1 because the third, dead input has 7. The Gram matrix with 0.01 of its mean diagonal 1/2
    added passes on 1 / 1.005 of the first error: 0.4 + 0.4 * 0.995 = 0.798 is what rounds to 1.
    """
    weight = jnp.asarray([[0.4, 0.4, 7.0, 0.0]])
    gram = jnp.zeros((4, 4)).at[:2, :2].set(1.0)
    q = gptq.fit(weight, Spec.parse("int4/channel"), gram, ORIGINAL)
    np.testing.assert_array_equal(q.codes(), [[0, 1, 7, 0]])
    np.testing.assert_array_equal(nearest.fit(weight, Spec.parse("int4/channel")).codes(), [[0, 0, 7, 0]])


def test_inputs_that_predict_nothing_are_rounded_to_nearest():
    weight, _ = correlated()
    gram = jnp.diag(jnp.arange(1.0, 65))
    for spec in (Spec.parse("int4/channel"), Spec.parse("int4/group32/asym")):
        q = gptq.fit(weight, spec, gram, gptq.Options(range="nearest"))
        np.testing.assert_array_equal(q.dequantize(), nearest.fit(weight, spec).dequantize())


def test_inputs_never_seen_are_rounded_to_nearest_and_disturb_no_other():
    weight, gram = correlated()
    dead = gram.at[::2].set(0).at[:, ::2].set(0)
    spec = Spec.parse("int8/channel")
    q = gptq.fit(weight, spec, dead, gptq.Options(range="nearest"))
    np.testing.assert_array_equal(q.codes()[:, ::2], nearest.fit(weight, spec).codes()[:, ::2])


@pytest.mark.parametrize("text", ["int4/channel", "int4/group64/asym"])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_the_outputs_is_less_than_half_of_that_of_nearest_rounding(text, seed):
    """The expected ratio is the mean of D over the mean of H's diagonal (see the module), here 0.35."""
    weight, gram = correlated(32, 128, rows=512, seed=seed)
    spec = Spec.parse(text)
    assert cost(weight, gptq.fit(weight, spec, gram), gram) < 0.5 * cost(
        weight, nearest.fit(weight, spec), gram
    )


def test_the_gain_is_that_which_the_factorization_predicts():
    """Without clipping, rounding errors are spread over a step: of sum(D) * scale^2 / 12, and not sum(H).

    8 bits and a range of twice the weight, so that nothing is clipped. 128 x 128 errors: 4 sigma are 5 %.
    """
    weight, gram = correlated(128, 128, rows=512)
    weight = jnp.concatenate([weight, jnp.full((128, 2), 2 * jnp.abs(weight).max())], axis=1)
    gram = jnp.pad(gram, ((0, 2), (0, 2)))
    spec = Spec.parse("int8/channel")
    q = gptq.fit(weight, spec, gram, gptq.Options(range="nearest", damping=1e-4, order=False))
    h = np.asarray(_grid.damped(gram, 1e-4), np.float64)
    d = np.diag(np.linalg.cholesky(h[::-1, ::-1])) ** 2
    error = np.asarray(weight - q.dequantize(), np.float64)[:, :128]
    measured = np.einsum("nj,jk,nk->", error, h[:128, :128], error)
    expected = float((q.scale**2).sum()) / 12 * d[2:].sum()  # d is from the last input to the first
    assert measured == pytest.approx(expected, rel=0.05)
    assert d[2:].sum() < 0.5 * np.trace(h[:128, :128])


def test_searched_ranges_and_the_order_by_energy_help():
    weight, gram = correlated(32, 128, rows=512)
    plain, searched, ordered = (
        cost(weight, gptq.fit(weight, Spec.parse("int4/channel"), gram, options), gram)
        for options in (ORIGINAL, gptq.Options(order=False), gptq.Options())
    )
    assert ordered < searched < plain


def test_scales_of_static_groups_are_those_of_the_original_weight():
    weight, gram = correlated()
    spec = Spec.parse("int4/group32/asym")
    q = gptq.fit(weight, spec, gram)
    start = search.fit(weight, spec, gram)
    kept = np.asarray((q.codes() != nearest.fit(weight, spec).codes()).any(1))
    assert kept.all()
    np.testing.assert_array_equal(q.scale, start.scale)
    np.testing.assert_array_equal(q.zero, start.zero)


def test_scales_of_moving_groups_follow_the_weight():
    """The first group is still the original weight, the second has taken up errors."""
    weight, gram = correlated()
    spec = Spec.parse("int4/group32")
    q, start = gptq.fit(weight, spec, gram, ORIGINAL), nearest.fit(weight, spec)
    np.testing.assert_array_equal(q.scale[:, 0], start.scale[:, 0])
    assert np.all(q.scale[:, 1] != start.scale[:, 1])


def test_moving_groups_in_another_order_are_refused():
    with pytest.raises(ValueError, match="needs order=false"):
        gptq.Options(static_groups=False)


def test_one_shape_is_compiled_once():
    weight, gram = correlated()
    spec = Spec.parse("int4/channel")
    gptq.fit(weight, spec, gram)
    size = gptq._rounded._cache_size()
    gptq.fit(2 * weight, spec, gram + jnp.eye(64))
    assert gptq._rounded._cache_size() == size


def test_the_dtype_of_the_weight_does_not_matter():
    weight, gram = correlated()
    half = weight.astype(jnp.bfloat16)
    spec = Spec.parse("int4/channel")
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()),
        gptq.fit(half, spec, gram),
        gptq.fit(half.astype(jnp.float32), spec, gram),
    )
    assert all(jax.tree.leaves(same))
