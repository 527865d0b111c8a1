"""Many recipes on one model, and on the same model with planted outliers: samples, figures, a run folder.

    metrics.json                  all records, as `viditq report` reads them; rewritten after each variant
    pictures/MODEL/RECIPE         what `generate` wrote
    results/MODEL/RECIPE.json     a finished variant's record, and the settings it was made with

A killed run goes on where it stopped: a variant whose result has equal settings is not made again.
"""

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from viditq_jax.calibrate import calibrate
from viditq_jax.checkpoint import fingerprint, versions
from viditq_jax.conditions import check_conditions
from viditq_jax.drift import Drift, layer_noise, times, trajectory
from viditq_jax.evaluate import TEMPORAL, evaluate
from viditq_jax.files import write_json
from viditq_jax.generate import generate
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import calibration_conditions, calibration_texts, quantize_pipeline
from viditq_jax.quant.recipe import Recipe, RecipeError, load_recipe
from viditq_jax.quant.stats import Stats
from viditq_jax.stress import stress

REFERENCE = "float"  # the variant that all others are compared with
_PER_ROW = (
    "psnr_db",
    "ssim",
    "latent_rel_l2",
    "weight_bytes",
    "weight_bytes_vs_bfloat16",
    "seconds_per_image",  # or video
)

# (what is done, how many items) -> a context that gives a function to call with the number just finished
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def silent(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress that nobody sees."""
    del what, total
    yield lambda count: None


def packaged_recipes() -> list[str]:
    """The names of all recipes that come with the library, the reference first."""
    folder = resources.files("viditq_jax.assets") / "recipes"
    names = (Path(item.name).stem for item in folder.iterdir() if item.name.endswith(".json"))
    return sorted(names, key=lambda name: (name != REFERENCE, name))


def compare_recipes(
    pipeline: Pipeline,
    recipes: Sequence[str],
    conditions: Sequence[str | int],
    out: str | Path,
    *,
    title: str = "default",
    stressed: bool = True,
    skip_misfits: bool = False,
    seed: int = 0,
    batch: int = 8,
    resume: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Make, measure and record the pictures of every recipe; what `metrics.json` holds.

    pipeline: in floating point. recipes: packaged names or files. title: names the model in records; the one
        with planted outliers is "stressed".
    skip_misfits: note recipes that do not fit this model under "skipped", instead of raising RecipeError.
    seed: of the pictures. Calibration takes its default conditions and the noise of seed + 1.
    batch: samples a compiled call; the noise of layers is measured on the first batch alone.
    resume: False makes the asked variants anew.
    Raises ValueError if the pipeline is quantized, or if `out` holds pictures of other settings.
    """
    if pipeline.recipe is not None:
        raise ValueError("this pipeline is quantized already; give the float pipeline that it came from.")
    check_conditions(conditions)
    loaded, skipped = _fitting(pipeline, recipes, skip_misfits)
    models = {title: pipeline}
    if stressed:
        if title == "stressed":
            raise ValueError(
                "the model is called 'stressed', as its twin with outliers would be; give another title, or"
                " leave the twin out."
            )
        models["stressed"] = dataclasses.replace(pipeline, denoiser=stress(pipeline.denoiser))
    records: dict[str, Any] = {
        "model": title,
        "prompts": len(conditions),
        "seed": seed,
        "steps": pipeline.steps,
        "sampler": pipeline.facts["sampler"]["name"],
        "guidance": pipeline.guidance.scale,
        "noise_floor": {},
        "variants": {},
        "skipped": skipped,
        "device": jax.devices()[0].device_kind,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
    }
    for model, each in models.items():
        bench = _Bench(model, each, list(conditions), Path(out), seed, batch, progress)
        for name, recipe in {REFERENCE: None, **loaded}.items():
            record = bench.saved(name, recipe) if resume else None
            if record is None:
                if not resume:
                    bench.forget(name)
                record = bench.reference() if recipe is None else bench.measure(name, recipe)
                bench.save(name, recipe, record)
            if recipe is None:
                records["noise_floor"][model] = record["noise_floor"]
            records["variants"][f"{model}/{name}"] = {
                key: value for key, value in record.items() if key != "noise_floor"
            }
            write_json(Path(out) / "metrics.json", records)
    return records


def result_rows(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures of a comparison, one flat row a variant, with what rounding alone changes among them."""
    shared = {name: records[name] for name in ("prompts", "seed", "steps")}
    rows = []
    for model, floor in records["noise_floor"].items():
        figures = {name: value for name, value in floor.items() if _is_figure(name)}
        row = {"model": model, "recipe": "bfloat16 against float32", **figures, **shared}
        rows.append({**row, **{name: records[name] for name in ("device", "date", "versions")}})
    for record in records["variants"].values():
        row = {
            "model": record["model"],
            "recipe": record["label"],
            **{name: value for name, value in record.items() if _is_figure(name)},
        }
        rows.append({**row, **shared, **{name: record[name] for name in ("device", "date", "versions")}})
    return rows


def _is_figure(name: str) -> bool:
    """Whether a field of a record is of its row: of videos also the temporal measures, with their units."""
    return name in _PER_ROW or name.startswith(TEMPORAL)


@dataclasses.dataclass
class _Bench:
    """One model with the conditions that all of its variants are measured on.

    What several variants need is kept: the float trajectory, and statistics by what they hold.
    """

    model: str
    pipeline: Pipeline
    conditions: list[str | int]
    out: Path
    seed: int
    batch: int
    progress: Progress

    def __post_init__(self) -> None:
        self.batch = min(self.batch, len(self.conditions))
        self._states: Any = None
        self._stats: dict[Any, Stats] = {}
        self._fingerprint = fingerprint(self.pipeline.nets())

    def reference(self) -> dict[str, Any]:
        """The record of the float pictures; and what rounding to bfloat16 alone changes."""
        record = self._record(REFERENCE, self.pipeline, None)
        wide = self.pipeline.facts["dtype"] == "float32"
        other = "bfloat16" if wide else "float32"
        pipeline = self.pipeline.astype(jnp.dtype(other))
        self._pictures(other, pipeline)
        states = self._trajectory(other, pipeline)
        pair = (self._float_states(), states) if wide else (states, self._float_states())
        floor = Drift.between(times(pipeline), *pair)
        record["noise_floor"] = {
            "what": "bfloat16 against float32",
            **self._quality(other),
            "latent_rel_l2": floor.final,
            "drift": floor.to_json(),
        }
        own = self._quality(REFERENCE)  # of videos also how they move, which has no reference
        return {**record, **own, "psnr_db": None, "ssim": None, "latent_rel_l2": 0.0}

    def measure(self, name: str, recipe: Recipe) -> dict[str, Any]:
        """The record of one recipe."""
        stats = self._statistics(name, recipe)
        started = time.perf_counter()
        with self.progress(f"{self.model}, {name}: quantizing", 1) as advance:
            small = quantize_pipeline(self.pipeline, recipe, seed=self.seed + 1, stats=stats)
            advance(1)
        quantizing = time.perf_counter() - started
        record = self._record(name, small, recipe)
        found = Drift.between(times(small), self._float_states(), self._trajectory(name, small))
        with self.progress(f"{self.model}, {name}: noise of layers", 1) as advance:
            first = self.conditions[: self.batch]
            layers = layer_noise(self.pipeline, small, first, stats, seed=self.seed, batch=self.batch)
            advance(1)
        return {
            **record,
            **self._quality(name),
            "latent_rel_l2": found.final,
            "seconds_to_quantize": round(quantizing, 2),
            "drift": found.to_json(),
            "layers": {path: noise.to_json() for path, noise in layers.items()},
        }

    def _record(self, name: str, pipeline: Pipeline, recipe: Recipe | None) -> dict[str, Any]:
        """What float and quantized variants share: the pictures, sizes and times."""
        compiled = self._pictures(name, pipeline)
        first = self.conditions[: self.batch]
        if not compiled:
            pipeline(first, seed=self.seed)
        started = time.perf_counter()
        pipeline(first, seed=self.seed)
        seconds = (time.perf_counter() - started) / len(first)
        weights = {path: w for path, w in pipeline.denoiser.weights().items() if path.startswith("blocks/")}
        stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
        dense = sum(2 * math.prod(weight.shape) for weight in weights.values())
        return {
            "model": self.model,
            "label": name,
            "pictures": f"pictures/{self.model}/{name}",
            "weight_bytes": stored,
            "bfloat16_weight_bytes": dense,
            "weight_bytes_vs_bfloat16": round(stored / dense, 4),
            "seconds_per_image": round(seconds, 4),
            "fps": pipeline.fps,
            "recipe": recipe.to_json() if recipe else None,
            "device": jax.devices()[0].device_kind,
            "date": datetime.now(UTC).date().isoformat(),
            "versions": versions(),
        }

    def _pictures(self, name: str, pipeline: Pipeline) -> bool:
        """Make those that are not there; whether all were made, in batches of one program."""
        what = f"{self.model}, {name}: pictures (compiles first)"
        with self.progress(what, len(self.conditions)) as advance:
            folder = self.out / "pictures" / self.model / name
            fresh = not folder.exists()
            generate(pipeline, self.conditions, folder, seed=self.seed, batch=self.batch, advance=advance)
        return fresh

    def _quality(self, name: str) -> dict[str, float | None]:
        """The measures against the float samples; None for the infinite PSNR of equal ones."""
        folder = self.out / "pictures" / self.model
        values = evaluate(folder / name, reference=folder / REFERENCE)
        return {key: value if math.isfinite(value) else None for key, value in values.items()}

    def _trajectory(self, name: str, pipeline: Pipeline) -> Any:
        what = f"{self.model}, {name}: latents of each step"
        with self.progress(what, len(self.conditions)) as advance:
            return trajectory(pipeline, self.conditions, seed=self.seed, batch=self.batch, advance=advance)

    def _float_states(self) -> Any:
        if self._states is None:
            self._states = self._trajectory(REFERENCE, self.pipeline)
        return self._states

    def _statistics(self, name: str, recipe: Recipe) -> Stats | None:
        """Those that the recipe needs; recipes with the same ranges and Gram matrices share them."""
        if not recipe.needs_stats:
            return None
        rules = recipe.resolve(self.pipeline.denoiser.weights())
        key = recipe.ranges, frozenset(path for path, rule in rules.items() if rule.needs_gram)
        if key not in self._stats:
            samples = calibration_conditions(self.pipeline)
            with self.progress(f"{self.model}, {name}: calibrating", len(samples)) as advance:
                self._stats[key] = calibrate(
                    self.pipeline,
                    samples,
                    recipe,
                    texts=calibration_texts(self.pipeline),
                    seed=self.seed + 1,
                    batch=self.batch,
                    advance=advance,
                )
        return self._stats[key]

    def saved(self, name: str, recipe: Recipe | None) -> dict[str, Any] | None:
        """The record of a finished variant with the same settings."""
        file = self._result(name)
        if not file.is_file():
            return None
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            record, settings = dict(held["record"]), held["settings"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"{file} is damaged ({error}); delete it and run again.") from error
        return record if settings == self._settings(recipe) else None

    def save(self, name: str, recipe: Recipe | None, record: Mapping[str, Any]) -> None:
        """Write the record of a finished variant."""
        write_json(self._result(name), {"settings": self._settings(recipe), "record": record})

    def forget(self, name: str) -> None:
        """Remove what an earlier run wrote of a variant."""
        self._result(name).unlink(missing_ok=True)
        others = ("bfloat16", "float32") if name == REFERENCE else ()
        for each in (name, *others):
            folder = self.out / "pictures" / self.model / each
            if (folder / "generation.json").is_file():
                shutil.rmtree(folder)

    def _result(self, name: str) -> Path:
        return self.out / "results" / self.model / f"{name}.json"

    def _settings(self, recipe: Recipe | None) -> dict[str, Any]:
        settings = {
            "recipe": recipe.to_json() if recipe else None,
            "weights": self._fingerprint,
            "conditions": self.conditions,
            "seed": self.seed,
            "batch": self.batch,
            "sampler": self.pipeline.facts["sampler"],
            "guidance": self.pipeline.facts["guidance"],
            "device": jax.devices()[0].device_kind,
            "versions": versions(),
        }
        return json.loads(json.dumps(settings))


def _fitting(
    pipeline: Pipeline, recipes: Sequence[str], skip_misfits: bool
) -> tuple[dict[str, Recipe], dict[str, str]]:
    """The recipes that fit the model, by the name of their files, and why the others do not."""
    weights = pipeline.denoiser.weights()
    loaded, skipped = {}, {}
    for name in recipes:
        label = Path(name).stem
        if label == REFERENCE:
            continue
        if label in ("bfloat16", "float32"):
            raise ValueError(f"a recipe is called {label!r}, as are pictures of the float model; rename it.")
        if label in loaded:
            raise ValueError(f"two recipes are called {label!r}; rename one, as results go by this name.")
        try:
            recipe = load_recipe(name)
            recipe.resolve(weights)
        except RecipeError as error:
            if not skip_misfits:
                raise
            skipped[label] = " ".join(str(error).split())
        else:
            loaded[label] = recipe
    return loaded, skipped
