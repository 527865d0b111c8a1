"""Samples for any bits from one compiled program, and plans judged on conditions that no search has seen."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from viditq_jax import programs
from viditq_jax.compare import Progress
from viditq_jax.evaluate.psnr import psnr
from viditq_jax.net import Net
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import default_conditions
from viditq_jax.quant.search.allocate import average_bits, plan_bytes, predicted
from viditq_jax.quant.search.table import Table
from viditq_jax.quant.search.variants import Bits, Variants
from viditq_jax.search.samples import Samples, apart, latent


def runner(
    pipeline: Pipeline,
    conditions: Sequence[str | int],
    seed: int,
    batch: int,
    bounds: tuple[int, ...] = (),
) -> Callable[..., Samples]:
    """What a denoiser makes of the conditions; one program for all that differ in their numbers alone.

    The second argument of the function, where given, hears how many samples a call has made.
    """
    calls = list(pipeline.calls(conditions, seed=seed, batch=batch))
    plan = pipeline.plan(bounds=bounds)

    def run(net: Net, advance: Callable[[int], None] = lambda count: None) -> Samples:
        found = []
        for call in calls:
            found.append(np.asarray(programs.denoise(net, call, None, plan=plan)))
            advance(call.batch)
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
        bounds: tuple[int, ...] = (),
    ):
        self.conditions = list(default_conditions(pipeline) if conditions is None else conditions)
        self.variants = variants
        self.sample = runner(pipeline, self.conditions, seed, batch, bounds)
        self.made: dict[tuple[Bits, ...], Samples] = {}  # several budgets may have one plan
        with progress("float samples to judge by", len(self.conditions)) as advance:
            self.float = self.sample(pipeline.denoiser, advance)

    def run(self, bits: Mapping[str, Bits]) -> Samples:
        """What a plan makes."""
        key = tuple(bits[path] for path in self.variants.layers)
        if key not in self.made:
            self.made[key] = self.sample(self.variants.chosen(bits))
        return self.made[key]

    @cached_property
    def least(self) -> float:
        """The error with the most bits everywhere, which every plan has."""
        most = dict.fromkeys(self.variants.layers, max(self.variants.nets))
        return latent(self.run(most), self.float)

    def figures(self, table: Table, bits: Mapping[str, Bits], error: str) -> dict[str, Any]:
        """The row of a plan: size, distance to the float samples, and what the table said it would be."""
        samples = self.run(bits)
        decibels = np.mean([psnr(a, b) for a, b in zip(samples.pictures, self.float.pictures, strict=True)])
        distance = apart(samples.latents, self.float.latents)
        return {
            "average_bits": average_bits(table, bits),
            "weight_bytes": plan_bytes(table, bits),
            "psnr_db": float(decibels) if math.isfinite(decibels) else None,
            "latent_rel_l2": float(np.mean(distance)),
            "latent_rel_l2_each": [float(f"{value:.5g}") for value in distance],
            "predicted": predicted(table, bits, error),
            "measured": float(np.mean(np.square(distance))) - self.least,
        }
