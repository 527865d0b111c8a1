"""What several verbs share: progress on standard error, and prompts from flags."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from viditq_jax.calibrate import calibrate, check_stats_file, load_stats
from viditq_jax.conditions import prompts_in
from viditq_jax.pipeline import Pipeline
from viditq_jax.post_training import (
    calibration_conditions,
    calibration_texts,
    default_conditions,
    quantize_pipeline,
)
from viditq_jax.quant.apply import check_recipe
from viditq_jax.quant.recipe import load_recipe

CONSOLE = Console(stderr=True)


class _Rate(ProgressColumn):
    """Items a second, or seconds an item."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; call what it gives with the number of items just finished."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner with the elapsed time, for work whose length is unknown."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=CONSOLE
    ) as progress:
        progress.add_task(what, total=None)
        yield


def conditions(
    prompt: tuple[str, ...], file: Path | None, labels: tuple[int, ...], pipeline: Pipeline
) -> list[str | int]:
    """The conditions that the flags name, or the packaged prompts. Raises ValueError for the wrong kind of
    them.
    """
    if pipeline.facts["conditions"]["kind"] != "prompt":
        if prompt or file:
            raise ValueError("this model takes class indices; use --label instead of prompts.")
        return list(labels) or [0]
    if labels:
        raise ValueError("this model takes prompts; use --prompt instead of --label.")
    given = list(prompt)
    if file:
        given += prompts_in(file)
    return list(given or default_conditions(pipeline))


def quantized(
    pipeline: Pipeline, name: str, *, prompts: Path | None = None, stats: Path | None = None, seed: int = 0
) -> Pipeline:
    """The pipeline under the recipe `name`, calibrated first where the recipe needs it and has no file.

    Raises ValueError for prompts that nothing would look at.
    """
    recipe = load_recipe(name)
    calibrates = recipe.needs_stats and not stats
    if prompts and not (calibrates or recipe.tuning or recipe.correction):
        why = f"{stats} holds the statistics" if stats else f"recipe {name} needs no calibration"
        raise ValueError(f"{why}, so --prompts would have no effect; leave it out.")
    samples, texts = calibrated_on(pipeline, prompts)
    known, facts = load_stats(stats) if stats else (None, {})
    if stats:
        check_stats_file(facts, pipeline, recipe)
    if calibrates and pipeline.recipe is None:
        check_recipe(pipeline.denoiser, recipe)
        with bar("calibrating (the first batch compiles)", len(samples)) as advance:
            known = calibrate(pipeline, samples, recipe, texts=texts, seed=seed, advance=advance)
    with working(f"quantizing to {name}"):
        return quantize_pipeline(pipeline, recipe, samples, texts=texts, seed=seed, stats=known)


def calibrated_on(
    pipeline: Pipeline, prompts: Path | None, count: int | None = None
) -> tuple[list[str | int], list[str]]:
    """What a calibration samples: the first `count` prompts of the file, or its default conditions; and of
    what it looks at the text alone: the rest of the file, or its default texts.
    """
    if prompts is None:
        return calibration_conditions(pipeline)[:count], calibration_texts(pipeline)
    if pipeline.facts["conditions"]["kind"] != "prompt":
        raise ValueError(
            "this model takes class indices, so there are no prompts to calibrate with; leave them out."
        )
    given = prompts_in(prompts)
    return list(given[:count]), [] if count is None else given[count:]
