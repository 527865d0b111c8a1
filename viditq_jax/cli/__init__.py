"""The command line: `viditq VERB`, one verb a file.

A verb's file defines `Options`, a dataclass whose fields are the flags, and `run(options)`, which calls the
library and returns what to print on standard output: a text, or with --json a value that is printed as JSON.
Progress goes to standard error. Errors of the library are one line, without a traceback.
"""

import gc
import json
import math
import os
import sys
from importlib import metadata
from typing import Any

from viditq_jax import plugins

_EXPECTED = (ValueError, LookupError, OSError, RuntimeError, ImportError, ArithmeticError, MemoryError)


def _summary(verb: str) -> str:
    return (plugins.find("viditq_jax.cli", verb).__doc__ or "").strip().split("\n")[0]


def _usage() -> str:
    verbs = plugins.names("viditq_jax.cli")
    lines = [f"  {verb:<10} {_summary(verb)}" for verb in verbs]
    return "\n".join(
        [
            "usage: viditq VERB [flags]",
            "",
            *lines,
            "",
            "viditq VERB --help explains one; for example:",
            '  viditq generate --prompt "red apple" --recipe w8a8',
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit code is 0, or 1 with a line on standard error that says what was wrong."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who read the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(metadata.version("viditq-jax"))
        return 0
    try:
        verb = plugins.find("viditq_jax.cli", arguments[0])
    except LookupError as error:
        print(f"viditq: {error.args[0]}", file=sys.stderr)
        return 2
    import tyro

    from viditq_jax.cli._cache import keep_programs

    gc.freeze()  # what was imported stays: no search for garbage goes through it again
    options = tyro.cli(
        verb.Options, args=arguments[1:], prog=f"viditq {arguments[0]}", description=verb.__doc__
    )
    keep_programs()
    try:
        _print(verb.run(options))
    except BrokenPipeError:
        raise
    except _EXPECTED as error:
        if os.environ.get("VIDITQ_TRACEBACK"):
            raise
        text = str(error.args[0]) if isinstance(error, LookupError) and error.args else str(error)
        text = " ".join(text.split()) or type(error).__name__
        # Names in files steer no terminal.
        text = "".join(sign if sign.isprintable() else "?" for sign in text)
        print(f"viditq {arguments[0]}: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"viditq {arguments[0]}: interrupted; generate, calibrate and evaluate --recipes go on when "
            "they are run again with the same flags.",
            file=sys.stderr,
        )
        return 130
    return 0


def _print(result: Any) -> None:
    if result is None:
        return
    print(result if isinstance(result, str) else json.dumps(_plain(result), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON has no infinity: the PSNR of equal pictures becomes the text "inf"."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
