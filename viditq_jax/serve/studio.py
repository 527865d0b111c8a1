"""One sample of a pipeline in floats and under a recipe, from the same noise; one at a time."""

import dataclasses
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from viditq_jax.conditions import check_prompt
from viditq_jax.evaluate.psnr import psnr
from viditq_jax.files import parse_json
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import default_conditions, quantize_pipeline
from viditq_jax.quant.apply import check_recipe
from viditq_jax.quant.recipe import Recipe, load_recipe

RECIPES = ("w8a8-dynamic", "w8a8", "w4a8", "w4a8-plus")  # the first needs no calibration
LARGEST_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be painted: a prompt, or of a model without prompts a number."""

    condition: str | int
    seed: int
    recipe: str


@dataclasses.dataclass(frozen=True)
class Painted:
    """A picture [h w 3], or a video [t h w 3]. seconds: that it took; compiled: and compiling with it."""

    label: str
    sample: np.ndarray
    seconds: float
    compiled: bool = False


class Studio:
    """A float pipeline and the recipes that it is quantized by when they are first asked for; or a pipeline
    that is quantized already, which holds no floats to compare with.

    Raises ValueError for a pipeline without a decoder, for recipes on a quantized one, for two of one name,
    and RecipeError for one that does not fit the model.
    """

    def __init__(self, pipeline: Pipeline, recipes: Sequence[str] = ()):
        if pipeline.decoder is None:
            raise ValueError("this model has no decoder, so there is nothing to see; convert it with --vae.")
        if pipeline.recipe is not None and recipes:
            raise ValueError(
                f"this model is quantized already, to {pipeline.recipe.name}; leave --recipes out, or give "
                "the float model."
            )
        self.pipeline = pipeline
        self.recipes: dict[str, Recipe] = {}
        self._small: dict[str, Pipeline] = {}
        self._compiled: set[str] = set()
        self._lock = threading.Lock()
        if pipeline.recipe is not None:
            self.recipes[pipeline.recipe.name] = pipeline.recipe
            self._small[pipeline.recipe.name] = pipeline
            return
        for each in recipes or RECIPES:
            recipe = load_recipe(each)
            if recipe.name in self.recipes:
                raise ValueError(f"two recipes are called {recipe.name!r}; rename one of them.")
            check_recipe(pipeline.denoiser, recipe)
            self.recipes[recipe.name] = recipe

    @property
    def compares(self) -> bool:
        """Whether there are floats to compare with."""
        return self.pipeline.recipe is None

    @property
    def kind(self) -> str:
        """What a wish says besides seed and recipe: "prompt", or "label", a number."""
        return "prompt" if self.pipeline.facts["conditions"]["kind"] == "prompt" else "label"

    @property
    def suggestions(self) -> list[str | int]:
        """Conditions that the model is known to paint."""
        return default_conditions(self.pipeline)

    def slow(self, recipe: str) -> bool:
        """Whether the first picture of a recipe waits for a calibration."""
        known = self.recipes[recipe]
        return recipe not in self._small and bool(known.needs_stats or known.tuning or known.correction)

    def wish(self, text: str) -> Wish:
        """A wish from JSON, {"prompt" (or "label"), "seed", "recipe"}, of a stranger. Raises ValueError."""
        data = parse_json(text)
        fields = (self.kind, "seed", "recipe")
        if not isinstance(data, dict) or data.keys() != set(fields):
            raise ValueError(f"a request is a JSON object with {', '.join(fields)} and nothing else.")
        recipe = data["recipe"]
        if not isinstance(recipe, str) or recipe not in self.recipes:
            raise ValueError(f"unknown recipe; this server has {', '.join(self.recipes)}.")
        seed = _whole(data["seed"], "the seed", LARGEST_SEED)
        if self.kind == "label":
            classes = self.pipeline.facts["conditions"].get("classes", LARGEST_SEED + 1)
            return Wish(_whole(data["label"], "the label", int(classes) - 1), seed, recipe)
        prompt = data["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError("the prompt is empty or no text; say what to paint, as in: red apple.")
        check_prompt(prompt)
        return Wish(prompt.strip(), seed, recipe)

    def paint(self, wish: Wish) -> list[Painted]:
        """The float sample, where there is one, and the quantized one. Waits for others to be painted."""
        with self._lock:
            if wish.recipe not in self._small:
                recipe = self.recipes[wish.recipe]
                self._small[wish.recipe] = quantize_pipeline(self.pipeline, recipe)
            variants = {"float": self.pipeline} if self.compares else {}
            variants[wish.recipe] = self._small[wish.recipe]
            painted = [_paint(label, pipeline, wish) for label, pipeline in variants.items()]
            fresh = variants.keys() - self._compiled
            self._compiled |= fresh
            return [dataclasses.replace(each, compiled=each.label in fresh) for each in painted]


def difference(painted: Sequence[Painted]) -> float | None:
    """PSNR of the second against the first, in decibels; None where there is no second, or none differs."""
    if len(painted) < 2:
        return None
    value = psnr(painted[1].sample, painted[0].sample)
    return value if math.isfinite(value) else None


def _paint(label: str, pipeline: Pipeline, wish: Wish) -> Painted:
    started = time.perf_counter()
    sample = pipeline([wish.condition], seed=wish.seed)[0]
    return Painted(label, sample, time.perf_counter() - started)


def _whole(value: Any, what: str, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{what} is no whole number from 0 to {most}.")
    return value
