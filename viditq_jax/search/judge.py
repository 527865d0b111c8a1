"""Samples for any bits from one compiled program, and plans judged on conditions that no search has seen."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from viditq_jax import programs
from viditq_jax.compare import Progress
from viditq_jax.evaluate.psnr import psnr
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import default_conditions
from viditq_jax.quant.search.allocate import average_bits, plan_bytes, predicted
from viditq_jax.quant.search.table import Table
from viditq_jax.quant.search.variants import Bits, Variants
from viditq_jax.search.samples import Samples, apart, latent


def runner(
    pipeline: Pipeline,
    variants: Variants,
    conditions: Sequence[str | int],
    seed: int,
    batch: int,
    bounds: tuple[int, ...] = (),
) -> Callable[[Mapping[str, Bits]], Samples]:
    """Samples of the conditions for bits of every layer; one program for all."""
    calls = list(pipeline.calls(conditions, seed=seed, batch=batch))
    plan = pipeline.plan(bounds=bounds)

    def run(bits: Mapping[str, Bits]) -> Samples:
        net = variants.chosen(bits)
        found = [np.asarray(programs.denoise(net, call, None, plan=plan)) for call in calls]
        return Samples(pipeline, np.concatenate(found))

    return run


class Judge:
    """Plans against the float pipeline, on conditions that the search has not seen."""

    def __init__(
        self,
        pipeline: Pipeline,
        variants: Variants,
        conditions: Sequence[str | int] | None,
        seed: int,
        batch: int,
        progress: Progress,
    ):
        self.conditions = list(default_conditions(pipeline) if conditions is None else conditions)
        self.run = runner(pipeline, variants, self.conditions, seed, batch)
        self.best = max(variants.nets)
        self.layers = variants.layers
        with progress("float samples to judge by", len(self.conditions)) as advance:
            found = []
            for call in pipeline.calls(self.conditions, seed=seed, batch=batch):
                found.append(
                    np.asarray(programs.denoise(pipeline.denoiser, call, None, plan=pipeline.plan()))
                )
                advance(call.batch)
        self.float = Samples(pipeline, np.concatenate(found))

    @cached_property
    def least(self) -> float:
        """The error with the most bits everywhere, which every plan has."""
        return latent(self.run(dict.fromkeys(self.layers, self.best)), self.float)

    def figures(self, table: Table, bits: dict[str, int], error: str) -> dict[str, Any]:
        """The row of a plan: size, distance to the float samples, and what the table said it would be."""
        samples = self.run(bits)
        values = [psnr(a, b) for a, b in zip(samples.pictures, self.float.pictures, strict=True)]
        finite = [value for value in values if math.isfinite(value)]
        distance = apart(samples.latents, self.float.latents)
        return {
            "average_bits": average_bits(table, bits),
            "weight_bytes": plan_bytes(table, bits),
            "psnr_db": sum(values) / len(values) if len(finite) == len(values) else None,
            "latent_rel_l2": float(np.mean(distance)),
            "latent_rel_l2_each": [float(f"{value:.5g}") for value in distance],
            "predicted": predicted(table, bits, error),
            "measured": latent(samples, self.float) - self.least,
        }
