"""What each layer takes in a denoising step with each of the bits, on this device, before anything is run."""

import dataclasses
from collections.abc import Sequence

import jax

from pallas_kernels.tuning import device_name
from viditq_jax.pipeline import Pipeline
from viditq_jax.quant.apply import quantize
from viditq_jax.quant.recipe import Recipe
from viditq_jax.quant.search.variants import searched, with_bits
from viditq_jax.speed import layer_speeds


def layer_seconds(
    pipeline: Pipeline, recipe: Recipe, bits: Sequence[int], *, batch: int
) -> dict[tuple[str, int], float]:
    """Seconds of (layer, bits), from what `viditq bench --tune` measured here; 0 for a layer that runs once a
    prompt. Raises ValueError, with the layers, where a shape was not measured on this device.
    """
    shapes = jax.eval_shape(lambda net: net, pipeline.denoiser)
    layers = searched(recipe, pipeline.denoiser)
    found: dict[tuple[str, int], float] = {}
    unknown: list[str] = []
    for b in bits:
        small = dataclasses.replace(pipeline, denoiser=quantize(shapes, with_bits(recipe, b)))
        heard = {each.layer: each.seconds for each in layer_speeds(small, batch=batch)}
        for path in layers:
            seconds = heard.get(path, 0.0)
            unknown += [f"{path} with {b} bits"] if seconds is None else []
            found[path, b] = seconds or 0.0
    if unknown:
        raise ValueError(
            f"{len(unknown)} products were not measured on {device_name()}: {'; '.join(unknown[:3])}, ...;"
            " run viditq bench --tune --parts ops on this machine, or give a budget in bits or bytes."
        )
    return found
