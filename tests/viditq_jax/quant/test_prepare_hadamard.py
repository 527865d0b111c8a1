"""Rotation of inputs and weights: the product stays, outliers spread, signs are reproducible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from viditq_jax.quant.prepare.hadamard import NEEDS_STATS, Options, Rotation, fit, misfit

OPTIONS = [
    Options(),
    Options(seed=3),
    Options(signs=False),
    Options(block=64),
    Options(block=16, regular=True),
    Options(block=64, regular=True, signs=False),
]
K = 192


def rotation(options=OPTIONS[0], path="blocks/0/mlp/fc1", k=K):
    return fit(jnp.zeros((2, k)), None, options, path=path)


def incoherence(x):
    return np.abs(x).max() / np.abs(x).mean()


def test_no_statistics_are_needed():
    assert not NEEDS_STATS


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_product_of_rotated_inputs_and_weight_is_the_product(options):
    """Relative to the lengths of the rows, by which float32 errors of a product grow."""
    x, w = jax.random.normal(jax.random.key(0), (2, 5, K)), jax.random.normal(jax.random.key(1), (7, K))
    step = rotation(options)
    inputs, weight = jax.jit(lambda s: (s.inputs(x), s.weight(w)))(step)
    assert inputs.shape == x.shape
    a, b, x, w = (np.asarray(v, np.float64) for v in (inputs, weight, x, w))
    size = np.linalg.norm(x, axis=-1)[..., None] * np.linalg.norm(w, axis=-1)
    assert np.all(np.abs(a @ b.T - x @ w.T) <= 1e-6 * size)
    assert np.abs(a - x).max() > 0.5


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_rotation_is_an_orthogonal_matrix(options):
    p = np.asarray(rotation(options).inputs(jnp.eye(K)), np.float64)
    np.testing.assert_allclose(p @ p.T, np.eye(K), atol=1e-6)
    block = options.block or K
    np.testing.assert_allclose(np.abs(p[:block, :block]), block**-0.5, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_rotation_spreads_one_outlier_whatever_the_signs(seed):
    """x has one 10 and seven entries of 1.004 / 7: max / mean is 10 / (11.004 / 8) = 7.27. A rotated entry is
    between (10 - 1.004) / sqrt(8) and (10 + 1.004) / sqrt(8), so max / mean is at most 11.004 / 8.996.
    """
    x = jnp.full((1, 8), 1.004 / 7).at[0, 5].set(10)
    assert incoherence(x) == pytest.approx(7.27, abs=5e-3)
    assert incoherence(rotation(Options(seed=seed), k=8).inputs(x)) < 11.004 / 8.996 + 1e-6


@pytest.mark.parametrize("options", [Options(), Options(block=64, regular=True, signs=False)], ids=str)
def test_a_mean_of_all_channels_is_not_concentrated(options):
    """Equal entries go to few channels otherwise: to one, by a matrix of Sylvester's."""
    x = jnp.ones((1, K))
    assert incoherence(rotation(Options(signs=False)).inputs(x)) > 20
    assert incoherence(rotation(options).inputs(x)) < 5


def test_signs_depend_on_seed_and_path_alone_and_are_fair():
    a = rotation(k=4096)
    assert a.signs.shape == (512,)
    assert a.signs.dtype == jnp.uint8
    same = fit(jnp.ones((3, 4096), jnp.bfloat16), None, Options(), path="blocks/0/mlp/fc1")
    np.testing.assert_array_equal(a.signs, same.signs)
    ones = int(np.unpackbits(np.asarray(a.signs)).sum())
    assert abs(ones - 2048) < 4 * 32  # four standard deviations of 4096 coins
    for other in (rotation(path="blocks/1/mlp/fc1", k=4096), rotation(Options(seed=1), k=4096)):
        differ = np.unpackbits(np.asarray(a.signs ^ other.signs)).sum()
        assert abs(int(differ) - 2048) < 4 * 32  # independent of each other


def test_signs_of_a_seed_and_path_never_change():
    """Stored artifacts do not need this; remaking one from its recipe does."""
    signs = rotation(k=32).signs
    np.testing.assert_array_equal(signs, [255, 107, 15, 104])


def test_the_first_channel_is_the_highest_bit():
    step = Rotation(jnp.asarray([0b10000000, 0b01000000], jnp.uint8), 1, False, 12)
    np.testing.assert_array_equal(step.inputs(jnp.ones((1, 12))), [[-1] + [1] * 8 + [-1] + [1] * 2])


def test_a_width_that_is_no_multiple_of_eight_has_its_last_bits_unused():
    step = rotation(k=12)
    assert step.signs.shape == (2,)
    assert step.inputs(jnp.ones((1, 12))).shape == (1, 12)


def test_zero_rows_stay_zero_and_bfloat16_is_rotated_in_float32():
    x = jax.random.normal(jax.random.key(0), (3, K)).astype(jnp.bfloat16).at[1].set(0)
    y = rotation().inputs(x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y[1], 0)
    np.testing.assert_array_equal(y, rotation().inputs(x.astype(jnp.float32)))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_abstract_and_compiled_fits_are_the_fit(options):
    def build(w):
        return fit(w, None, options, path="a")

    w = jnp.ones((4, K))
    step, compiled = build(w), jax.jit(build)(w)
    abstract = jax.eval_shape(build, jax.ShapeDtypeStruct(w.shape, w.dtype))
    assert jax.tree.structure(step) == jax.tree.structure(compiled) == jax.tree.structure(abstract)
    assert jax.tree.map(jnp.shape, step) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    jax.tree.map(np.testing.assert_array_equal, step, compiled)
    assert len(jax.tree.leaves(step)) == int(options.signs)


def test_a_gram_matrix_is_prepared_by_rotating_both_sides():
    x = jax.random.normal(jax.random.key(0), (64, 48))
    step = rotation(k=48)
    y = np.asarray(step.inputs(x), np.float64)
    gram = step.inputs(step.inputs(x.T @ x).T)
    np.testing.assert_allclose(gram, y.T @ y, atol=1e-6 * np.trace(x.T @ x))


def test_what_does_not_fit_is_refused_with_blocks_that_do():
    assert misfit(1152, Options()) is None
    assert misfit(1152, Options(block=64, regular=True)) is None
    assert "order 1152 is built here; blocks that fit" in misfit(1152, Options(regular=True))
    assert "64, 72, 96, 128, 144, 192" in misfit(1152, Options(block=100))
    with pytest.raises(ValueError, match=r"head/out cannot be rotated: no Hadamard .* of order 30 .*: 2\.$"):
        rotation(path="head/out", k=30)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="block of -1"):
        Options(block=-1)
    with pytest.raises(ValueError, match="seed -1 is outside"):
        Options(seed=-1)
    with pytest.raises(ValueError, match="is outside"):
        Options(seed=2**31)
