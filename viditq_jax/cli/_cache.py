"""Compiled programs are kept on disk, so that the second start of a command compiles nothing anew.

JAX's persistent compilation cache, in a folder that only the user reads and writes, as what is in it is run.
JAX_COMPILATION_CACHE_DIR names another folder; VIDITQ_COMPILATION_CACHE=off keeps nothing.
"""

import os
import sys
from pathlib import Path

import jax

SWITCH = "VIDITQ_COMPILATION_CACHE"
FOLDER = "jax_compilation_cache_dir"  # of JAX
MOST_BYTES = 4 << 30  # the programs that were not used for longest go first
LEAST_SECONDS = 0.0  # that a program took to compile: dozens of small ones take seconds together


def folder() -> Path:
    """Where programs are kept, if JAX is not told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "viditq-jax" / "programs"


def keep_programs() -> None:
    """Turn the cache on, unless the user did or does not want it; a folder that cannot be made is said."""
    if os.environ.get(SWITCH) == "off" or getattr(jax.config, FOLDER):
        return
    path = folder()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owned = path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o022
    except OSError as error:
        print(f"viditq: {path} cannot hold compiled programs ({error.strerror}); {SWITCH}=off says the same.",
              file=sys.stderr)  # fmt: skip
        return
    if not owned:
        print(f"viditq: others may write to {path}, so compiled programs are not kept; chmod 700 mends it.",
              file=sys.stderr)  # fmt: skip
        return
    jax.config.update(FOLDER, str(path))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
