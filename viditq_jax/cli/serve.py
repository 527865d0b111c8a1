"""A page on this machine that paints a prompt in floats and quantized, side by side: viditq serve

It opens no door to others: the address is 127.0.0.1 unless --host names another, and then there is still no
password. It needs the extra `serve`.
"""

import dataclasses
import socket
import sys
from typing import Annotated, Any

import tyro

from viditq_jax.cli._common import working
from viditq_jax.load import load_pipeline
from viditq_jax.serve.studio import Studio

_SECONDS_TO_END = 5


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `viditq serve`."""

    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "default"
    """An artifact, a checkpoint, "default" or "default-video"."""
    recipes: tuple[str, ...] = ()
    """Recipes to choose from, packaged or JSON files; w8a8-dynamic w8a8 w4a8 w4a8-plus if none is given."""
    host: str = "127.0.0.1"
    """The address that is listened at."""
    port: int = 8000
    """The port; 0 takes any that is free."""


def run(options: Options) -> Any:
    """Load, and serve until Ctrl+C."""
    try:
        import uvicorn

        from viditq_jax.serve.app import LOOPBACK, make_app
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"serve needs the package {error.name}; install it by `pip install 'viditq-jax[serve]'`."
        ) from error
    if not 0 <= options.port <= 65535:
        raise ValueError(f"--port is {options.port}; choose 1 to 65535, or 0 for any that is free.")
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        listening = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise OSError(
            f"{options.host}, port {options.port}: {error.strerror}; choose another --port or --host."
        ) from error
    with listening:
        with working("loading"):
            studio = Studio(load_pipeline(options.model), options.recipes)
        local = options.host in LOOPBACK
        if not local:
            print(
                f"viditq serve: who reaches {options.host} can use this; there is no password.",
                file=sys.stderr,
            )
        everywhere = options.host in ("0.0.0.0", "::")
        app = make_app(studio, options.model, hosts=None if everywhere else {*LOOPBACK, options.host})
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, limit_concurrency=64,
            timeout_graceful_shutdown=_SECONDS_TO_END,
        )  # fmt: skip
        name = f"[{options.host}]" if family == socket.AF_INET6 else options.host
        print(f"http://{name}:{listening.getsockname()[1]} (Ctrl+C ends it)", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:  # uvicorn has ended what was running, and passes it on
            return None
    return None
