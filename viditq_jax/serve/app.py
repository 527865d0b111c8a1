"""The page and what it asks for, over HTTP. Who asks is not trusted: pages of other sites may try.

    GET /         the page
    POST /paint   {"prompt", "seed", "recipe"} as JSON; {"pictures": [{"label", "uri", ...}], "psnr_db"}

What is refused is answered with {"error"}, one line. No part of a request becomes a path: there are no files
to serve, and recipes are looked up among those that the server was started with.
"""

import asyncio
from collections.abc import Collection
from urllib.parse import urlsplit

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from viditq_jax.conditions import LONGEST
from viditq_jax.serve.studio import LARGEST_SEED, Studio, difference
from viditq_jax.video import data_uri

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 1 << 16  # of a request: the longest prompt, with every character escaped
MOST_WAITING = 4  # requests that wait while one is painted
SECONDS_TO_SEND = 10.0
_LONGEST_ERROR = 500
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_FAILS = (ValueError, LookupError, RuntimeError, ArithmeticError, MemoryError, OSError)


def make_app(studio: Studio, model: str, *, hosts: Collection[str] | None = LOOPBACK) -> Starlette:
    """The application.

    model: its name, to show. hosts: names by which the server may be called; None takes any. Other sites can
        point a name of theirs to 127.0.0.1, and their pages could then read what is here.
    """
    asked = 0  # that are painted or wait
    page = _page(studio, model)

    async def show(request: Request) -> Response:
        _check_host(request, hosts)
        return HTMLResponse(page, headers=_HEADERS)

    async def paint(request: Request) -> Response:
        nonlocal asked
        _check_host(request, hosts)
        _check_origin(request)
        body = await _body(request)
        try:
            wish = studio.wish(body.decode())
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        if asked > MOST_WAITING:
            raise HTTPException(503, "others are waiting for their pictures already; try again in a while.")
        asked += 1
        try:
            painted = await run_in_threadpool(studio.paint, wish)
        except _FAILS as error:
            raise HTTPException(500, f"painting failed ({type(error).__name__}: {error})") from error
        finally:
            asked -= 1
        pictures = [
            {
                "label": each.label,
                "uri": data_uri(each.sample, studio.pipeline.fps),
                "seconds": each.seconds,
                "compiled": each.compiled,
                "width": each.sample.shape[-2],
            }
            for each in painted
        ]
        return JSONResponse({"pictures": pictures, "psnr_db": difference(painted)}, headers=_HEADERS)

    routes = [Route("/", show, methods=["GET"]), Route("/paint", paint, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refused})


def _page(studio: Studio, model: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("viditq_jax.serve", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        model=model,
        architecture=studio.pipeline.facts["denoiser"]["model"],
        steps=studio.pipeline.steps,
        compares=studio.compares,
        kind=studio.kind,
        suggestions=studio.suggestions,
        recipes={name: studio.slow(name) for name in studio.recipes},
        longest=LONGEST,
        largest_seed=LARGEST_SEED,
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = " ".join(error.detail.split())
    text = "".join(sign if sign.isprintable() else "?" for sign in text)[:_LONGEST_ERROR]
    return JSONResponse({"error": text}, error.status_code, headers={**_HEADERS, **(error.headers or {})})


def _check_host(request: Request, hosts: Collection[str] | None) -> None:
    try:
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        name = None
    if name is None or (hosts is not None and name not in hosts):
        raise HTTPException(403, "this server is called by another name; open the address that it printed.")


def _check_origin(request: Request) -> None:
    """A page of another site may not ask: browsers say which site it is, and JSON it may not send unasked."""
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{request.headers['host']}":
        raise HTTPException(403, "the request comes from a page of another site; open this server's own.")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send the request as application/json.")


async def _body(request: Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BYTES:
                    raise HTTPException(413, f"the request is longer than {MOST_BYTES} bytes.")
    except TimeoutError as error:
        raise HTTPException(408, f"the request did not arrive in {SECONDS_TO_SEND:g} s.") from error
    except ClientDisconnect as error:
        raise HTTPException(400, "the request broke off.") from error
    return body
