"""quantize_pipeline: what a recipe asks for beside its rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quant.recipe import Recipe, Rule
from viditq_jax.quant.spec import Spec

PROMPTS = ["a red apple", "two blue dogs", "gold"]
# alpha 0.1: the balances of both projections are folded into the layers before them
RULE = Rule(
    ("blocks/*",), Spec.parse("int4/channel/asym"), Spec.parse("int8/token/asym"), ("balance:alpha=0.1",)
)


def error(pipeline: Pipeline, reference: Pipeline) -> float:
    return float(jnp.square(pipeline.latents(PROMPTS) - reference.latents(PROMPTS)).mean())


def test_tuning_brings_the_samples_closer_and_keeps_the_layout():
    """The last batch is a smaller one; the second recipe differs by its tuning alone."""
    pipeline = tiny.pipeline()
    untuned = quantize_pipeline(pipeline, Recipe((RULE,)), PROMPTS, batch=2)
    tuned = quantize_pipeline(
        pipeline, Recipe((RULE,), tuning="brecq:iterations=60,batch=6,times=3"), PROMPTS, batch=2
    )
    assert error(tuned, pipeline) < 0.8 * error(untuned, pipeline)
    old, new = (jax.tree.flatten(each.denoiser) for each in (untuned, tuned))
    assert old[1] == new[1]
    assert [(x.shape, x.dtype) for x in old[0]] == [(x.shape, x.dtype) for x in new[0]]
    same = [np.array_equal(x, y) for x, y in zip(old[0], new[0], strict=True)]
    assert not all(same)


def test_a_bfloat16_pipeline_is_tuned_too():
    """What the blocks are given is bfloat16 there, and their training float32."""
    pipeline = tiny.pipeline(jnp.bfloat16)
    recipe = Recipe((RULE,), tuning="brecq:iterations=2,batch=2,times=1")
    tuned = quantize_pipeline(pipeline, recipe, PROMPTS[:1])
    assert np.isfinite(tuned.latents(PROMPTS[:1])).all()
    error = tuned.facts["layers"]["blocks/0/mlp/fc1"]["weight_error"]
    assert 0 < error < 0.3


def test_a_tuning_that_cannot_be_is_refused_before_any_calibration():
    rule = Rule(("blocks/*",), Spec.parse("fp8/channel"), Spec.parse("fp8/token"), ("balance",))
    seen = []
    with pytest.raises(ValueError, match="fp8/channel is no integer"):
        quantize_pipeline(tiny.pipeline(), Recipe((rule,), tuning="brecq"), PROMPTS, advance=seen.append)
    assert not seen
