"""What several verbs share: progress on standard error, and prompts from flags."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

CONSOLE = Console(stderr=True)


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Progress]:
    """A progress bar on standard error; `advance(n)` of the task it starts moves it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=CONSOLE) as progress:
        progress.add_task(what, total=total)
        yield progress


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner with the elapsed time, for work whose length is unknown."""
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=CONSOLE) as progress:
        progress.add_task(what, total=None)
        yield


def packaged_prompts() -> list[str]:
    """The prompts that come with the default model."""
    text = (resources.files("viditq_jax.assets") / "prompts" / "default.txt").read_text()
    return read_prompts(text)


def read_prompts(text: str) -> list[str]:
    """One prompt a line; blank lines do not count."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def conditions(prompt: tuple[str, ...], file: Path | None, labels: tuple[int, ...], kind: str) -> list[str | int]:
    """The conditions that the flags name, or the packaged prompts. Raises ValueError for the wrong kind of them."""
    if kind == "label":
        if prompt or file:
            raise ValueError("this model takes class indices; use --label instead of prompts.")
        return list(labels) or [0]
    if labels:
        raise ValueError("this model takes prompts; use --prompt instead of --label.")
    given = [*prompt, *(read_prompts(file.read_text()) if file else [])]
    return list(given or packaged_prompts())
