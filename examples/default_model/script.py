"""What scripts that train a packaged model share: options, folder, icons, and results that are kept."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from default_model import data
from default_model.loop import Arrays


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """With the options of every script; `out` is its folder where none is given."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--out", type=Path, default=Path(out), help="everything that is made on the way")
    found.add_argument(
        "--data", type=Path, help="folder with noto/ and fluent/; fetched with npm where not given"
    )
    found.add_argument("--assets", type=Path, help="where the package goes; OUT/package where not given")
    found.add_argument("--machine", default=f"{os.cpu_count()} CPU cores", help="for the card: where it ran")
    return found


def denoiser_options(found: argparse.ArgumentParser) -> None:
    """Add those of scripts that train a denoiser."""
    found.add_argument(
        "--bf16", action="store_true", help="compute in bfloat16 (faster on a GPU, slower on a CPU)"
    )
    found.add_argument(
        "--early", action="store_true", help="package the averages of the last checkpoint and stop"
    )
    found.add_argument("--note", default="", help="for the card: what else to know of this run")


def begin(options: argparse.Namespace) -> list[data.Icon]:
    """Make the folder of the run; the icons."""
    options.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((options.out / "compiled").absolute()))
    if options.data is None:
        options.data = options.out / "data"
        data.fetch(options.data)
    return data.read_icons(options.data)


def package_folder(options: argparse.Namespace) -> Path:
    """Where the package goes."""
    return options.assets or options.out / "package"


def keep(file: Path, make: Callable[[], Mapping[str, Any]]) -> Arrays:
    """What `make` gives, from the file if it is there."""
    if not file.exists():
        arrays = {name: np.asarray(value) for name, value in make().items()}
        with file.with_suffix(".part").open("wb") as stream:
            np.savez(stream, **arrays)
        os.replace(file.with_suffix(".part"), file)
    with np.load(file) as arrays:
        return {name: jnp.asarray(value) for name, value in arrays.items()}
