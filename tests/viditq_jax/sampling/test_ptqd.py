"""PTQD's correction: the part of an error that follows the prediction is found and removed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests import tiny
from viditq_jax.load import load_pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec
from viditq_jax.sampling.ptqd import corrected, correlation

PROMPTS = ["a red apple", "two blue dogs"]
OUT = jax.random.normal(jax.random.key(0), (2, 8, 8, 8))
X = jnp.zeros((2, 8, 8, 4))
RULES = (Rule(("blocks/*",), Spec.parse("int4/channel"), Spec.parse("int8/token")),)


def test_an_error_that_is_a_multiple_of_the_prediction_is_removed_exactly():
    k = jnp.asarray([0.25, -0.5])
    sums = [correlation(OUT * jnp.where(jnp.arange(8) < 4, 1 + k[i], 9), OUT, 4) for i in range(2)]
    np.testing.assert_allclose([error / size for error, size in sums], k, rtol=1e-6)
    repaired = corrected(lambda x, t, i: OUT * (1 + k[i]), k)(X, jnp.zeros(2), jnp.int32(1))
    np.testing.assert_allclose(repaired[..., :4], OUT[..., :4], rtol=1e-6)
    np.testing.assert_array_equal(repaired[..., 4:], OUT[..., 4:] * 0.5)  # a variance stays as it is


def test_an_error_that_does_not_follow_the_prediction_has_no_correlation():
    noise = jax.random.normal(jax.random.key(1), OUT.shape)
    error, size = correlation(OUT + noise, OUT, 8)
    assert abs(error / size) < 4 / OUT.size**0.5  # four standard deviations of a mean


def test_a_recipe_with_the_correction_measures_it_and_one_without_does_not():
    """The released code divides for every method (D16)."""
    pipeline = tiny.pipeline(depth=1)
    plain = quantize_pipeline(pipeline, Recipe(RULES), PROMPTS)
    assert "correction" not in plain.facts
    ptqd = quantize_pipeline(pipeline, Recipe(RULES, correction="ptqd"), PROMPTS)
    k = np.asarray(ptqd.facts["correction"]["k"])
    assert k.shape == (pipeline.steps,)
    assert np.all((np.abs(k) > 0) & (np.abs(k) < 0.5))
    reference = pipeline.latents(PROMPTS)
    errors = [float(jnp.linalg.norm(each.latents(PROMPTS) - reference)) for each in (plain, ptqd)]
    assert errors[0] != errors[1]


def test_the_correction_survives_an_artifact_and_other_steps(tmp_path):
    pipeline = tiny.pipeline(depth=1)
    small = quantize_pipeline(pipeline, Recipe(RULES, correction="ptqd"), PROMPTS)
    small.save(tmp_path / "small")
    tiny.assert_same(load_pipeline(tmp_path / "small"), small)
    entry = small.facts["correction"]
    np.testing.assert_allclose(small.correction(pipeline.plan()), entry["k"], rtol=1e-6)
    between = np.asarray(small.correction(pipeline.plan(steps=5)))
    assert between.shape == (5,)
    assert between.min() >= min(entry["k"]) - 1e-6
    assert between.max() <= max(entry["k"]) + 1e-6
    none = dataclasses.replace(small, facts={**small.facts, "correction": None})
    assert none.correction(none.plan(steps=3)) is None
