"""Post-training quantization of diffusion transformers, after ViDiT-Q (arXiv 2406.02540), and beyond it."""

from viditq_jax.calibrate import calibrate
from viditq_jax.evaluate import evaluate
from viditq_jax.generate import generate
from viditq_jax.load import load_pipeline
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import quantize_pipeline
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.recipe import Recipe, Rule, load_recipe
from viditq_jax.quant.spec import Spec
from viditq_jax.sampling.sample import sample

__all__ = [
    "Pipeline",
    "Recipe",
    "Rule",
    "Spec",
    "calibrate",
    "evaluate",
    "generate",
    "load_pipeline",
    "load_recipe",
    "quantize",
    "quantize_pipeline",
    "sample",
]
