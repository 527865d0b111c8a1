"""The low-rank branch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.viditq_jax.quant.correlated import correlated
from viditq_jax.quant import low_rank
from viditq_jax.quant.low_rank import split, top_part
from viditq_jax.quant.rounding import _grid, gptq, nearest
from viditq_jax.quant.spec import Spec

SPEC = Spec.parse("int4/group32")


def cost(weight, q, branch, gram) -> float:
    matrix = 0 if branch is None else branch.matrix()
    return float(_grid.output_error(weight - q.dequantize() - matrix, gram).sum())


def to_nearest(rest):
    return nearest.fit(rest, SPEC)


def test_product_is_that_with_the_matrix():
    """In float32: 64 terms, then 4."""
    weight, _ = correlated(32)
    branch = top_part(weight, None, 4)
    x = jax.random.normal(jax.random.key(0), (5, 64))
    np.testing.assert_allclose(branch.product(x), x @ branch.matrix().T, atol=1e-5)
    assert branch.down.shape == (4, 64)
    assert branch.up.shape == (32, 4)
    assert branch.down.dtype == branch.up.dtype == jnp.bfloat16


def test_what_is_quantized_is_the_weight_without_the_rounded_branch():
    """Rest and branch give the weight back, so bfloat16 costs nothing that quantization does not see."""
    weight, gram = correlated(32)
    rests = []
    _, branch = split(
        weight, SPEC, lambda rest: rests.append(rest) or to_nearest(rest), gram, rank=4, iterations=1
    )
    first = top_part(weight, None, 4)
    np.testing.assert_allclose(rests[0] + first.matrix(), weight, atol=1e-6)
    assert branch.up.shape == (32, 4)


@pytest.mark.parametrize("weighed", [False, True])
def test_the_branch_is_the_best_of_its_rank(weighed):
    """Eckart and Young: the error that is left is the sum of the squares of the other singular values.

    Singular values are 2^-i. Rounding up and down to 8 bits adds 2 * 2^-9 of each entry at most, an error of
    (2^-8)^2 of the squares of all.
    """
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.normal(size=(32, 32)))
    v, _ = np.linalg.qr(rng.normal(size=(64, 32)))
    decaying = (u * 2.0 ** -np.arange(32)) @ v.T
    _, gram = correlated(k=64)
    metric = np.asarray(_grid.damped(gram, 0.01), np.float64) if weighed else np.eye(64)
    root = np.linalg.cholesky(metric)
    singular = np.linalg.svd(decaying @ root)[1]
    branch = top_part(
        jnp.asarray(decaying, jnp.float32), jnp.asarray(metric, jnp.float32) if weighed else None, 4
    )
    error = (decaying - np.asarray(branch.matrix(), np.float64)) @ root
    least = (singular[4:] ** 2).sum()
    assert least * 0.999 <= (error**2).sum() <= least * 1.001 + 2.0**-16 * (singular**2).sum()


@pytest.mark.parametrize("gram", [None, "correlated"])
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_branch_lowers_the_error_and_rounds_of_fitting_lower_it_more(gram, rounding):
    weight, found = correlated(32)
    gram = None if gram is None else found
    round_ = to_nearest if rounding == "nearest" else partial(gptq.fit, spec=SPEC, gram=found)
    errors = [
        cost(weight, *split(weight, SPEC, round_, gram, rank=4, iterations=iterations), gram)
        for iterations in (1, 2, 4)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < 0.9 * cost(weight, round_(weight), None, gram)


def test_weighing_by_the_inputs_lowers_the_error_of_the_outputs():
    weight, gram = correlated(32)
    plain, weighed = (cost(weight, *split(weight, SPEC, to_nearest, g, rank=4), gram) for g in (None, gram))
    assert weighed < 0.8 * plain


def test_columns_of_outliers_go_into_the_branch():
    """Two columns a hundred times the others have rank 2, so the rest has the steps of an ordinary weight."""
    weight, _ = correlated(32)
    loud = weight.at[:, jnp.asarray([3, 40])].multiply(100)
    ordinary = to_nearest(weight)
    q, branch = split(loud, SPEC, to_nearest, rank=4, iterations=1)
    assert cost(loud, to_nearest(loud), None, None) > 30 * cost(weight, ordinary, None, None)
    assert cost(loud, q, branch, None) < 2 * cost(weight, ordinary, None, None)


def test_shapes_alone_give_the_shapes_of_the_result():
    weight, gram = correlated(32)
    run = partial(split, spec=SPEC, round=to_nearest, rank=4)
    abstract = jax.eval_shape(run, weight, gram=gram)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), out) for out in (abstract, run(weight, gram=gram))]
    assert shapes[0] == shapes[1]


def test_odd_weights_and_inputs_give_finite_results():
    weight, gram = correlated(32)
    weights = [
        weight,
        jnp.zeros_like(weight),
        jnp.full_like(weight, 0.3),
        1e-15 * weight,
        weight.at[3, 3].set(1e8),
    ]
    inputs = [
        gram,
        jnp.zeros_like(gram),
        correlated(k=64, rows=3)[1],
        gram.at[:9].set(0).at[:, :9].set(0),
        1e12 * gram,
    ]
    for odd in weights:
        for gram in (None, *inputs):
            q, branch = split(odd, SPEC, to_nearest, gram, rank=4, iterations=2)
            assert np.all(np.isfinite(q.dequantize() + branch.matrix()))
            error = float(jnp.abs(odd - q.dequantize() - branch.matrix()).max())
            assert error <= 0.2 * float(jnp.abs(odd).max())


def test_the_same_weight_gives_the_same_branch():
    weight, gram = correlated(32)
    first, second = (split(weight, SPEC, to_nearest, gram, rank=4) for _ in range(2))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, second)))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 0}, "rank 0"),
        ({"rank": 17}, "choose 1 to 16"),
        ({"rank": 4, "iterations": 0}, "iterations=0"),
    ],
)
def test_impossible_options_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        split(jnp.ones((16, 64)), SPEC, to_nearest, **options)


def test_a_large_weight_takes_products_with_thin_matrices_alone():
    text = str(jax.make_jaxpr(partial(low_rank.top_part, rank=4))(jnp.zeros((512, 1024)), None))
    assert "512,512]" not in text
