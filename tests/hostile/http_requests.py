"""Requests to the page of `viditq serve`. It knows two recipes, and its model is real and tiny."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tests import tiny
from tests.asgi import JSON, ask
from tests.hostile.door import Case
from viditq_jax.serve.app import MOST_BYTES, make_app
from viditq_jax.serve.studio import Studio

WISH = {"prompt": "a red apple", "seed": 0, "recipe": "w8a8-dynamic"}


class _Closed(Studio):
    """Paints nothing, so that a request which gets so far is seen."""

    def paint(self, wish: Any) -> Any:
        raise AssertionError(f"{wish} was painted")


@cache
def app() -> Any:
    return make_app(_Closed(tiny.pipeline(depth=1), ["w8a8-dynamic", "w8a8"]), "tiny")


def said(status: int, method: str, path: str, *arguments: Any, **options: Any) -> None:
    """Raises what the one line of the refusal says. Another status is no refusal."""
    answer = ask(app(), method, path, *arguments, **options)
    assert answer.status == status, answer
    found = answer.json()
    assert found.keys() == {"error"}
    raise ValueError(found["error"])


def refused(
    name: str, says: str, status: int, method: str, path: str, *arguments: Any, **options: Any
) -> Case:
    def enter(folder: Path, out: Path) -> None:
        said(status, method, path, *arguments, **options)

    return Case(f"http: {name}", lambda folder: None, enter, says)


def wish(name: str, says: str, **fields: Any) -> Case:
    return text(name, says, json.dumps({**WISH, **fields}))


def text(name: str, says: str, body: str | bytes) -> Case:
    data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    return refused(name, says, 400, "POST", "/paint", data)


GOOD = json.dumps(WISH).encode()
SEED = "the seed is no whole number from 0 to 2147483647"
RECIPE = "unknown recipe; this server has w8a8-dynamic, w8a8"
CASES = [
    wish("an empty prompt", "the prompt is empty", prompt=" \n"),
    wish("a prompt of 5,001 characters", "has 5001 characters", prompt="a" * 5001),
    wish("a prompt with a NUL", "holds a NUL", prompt="a\0b"),
    wish("half of a pair", "half a character", prompt="a \ud800 cat"),
    wish("a prompt that is a list", "no text", prompt=["a"]),
    wish("a negative seed", SEED, seed=-1),
    wish("a seed of 2**31", SEED, seed=2**31),
    wish("a seed of 1.5", SEED, seed=1.5),
    wish("a seed that is true", SEED, seed=True),
    wish("a seed that is text", SEED, seed="0"),
    text("a seed of 5,000 digits", "Exceeds the limit", f'{{"prompt": "a", "seed": {"9" * 5000}}}'),
    text("a seed of NaN", "NaN", '{"prompt": "a", "recipe": "w8a8", "seed": NaN}'),
    wish("an unknown recipe", RECIPE, recipe="w1a1"),
    wish("a packaged recipe that it was not started with", RECIPE, recipe="fp8"),
    wish("a recipe by a path", RECIPE, recipe="../recipes/w8a8.json"),
    wish("a recipe by an absolute path", RECIPE, recipe="/etc/passwd"),
    wish("a recipe that is an object", RECIPE, recipe={"rules": []}),
    wish("a field too many", "with prompt, seed, recipe and nothing else", model="/etc"),
    text("a field too few", "with prompt, seed, recipe and nothing else", '{"prompt": "a"}'),
    text("a field twice", "stands twice", '{"seed": 1, "seed": 2}'),
    text("a list", "is a JSON object", "[]"),
    text("nothing", "line 1", ""),
    text("no JSON", "line 1", "prompt=a&seed=0"),
    text("no text", "invalid start byte", b"\xff\xfe\x00"),
    text("deep nesting", "nested too deeply", "[" * 50_000),
    refused("64 kB and more", "longer than", 413, "POST", "/paint", b" " * (MOST_BYTES + 1)),
    refused("pieces without end", "longer than", 413, "POST", "/paint", [b" " * 4096] * 1000),
    refused("half a request", "broke off", 400, "POST", "/paint", GOOD[:20], breaks_off=True),
    refused("a form of another site", "send the request as", 415, "POST", "/paint", GOOD,
            {**JSON, "content-type": "text/plain"}),
    refused("no type", "send the request as", 415, "POST", "/paint", GOOD, {"host": "127.0.0.1"}),
    refused("a page of another site", "page of another site", 403, "POST", "/paint", GOOD,
            {**JSON, "origin": "http://evil.example"}),
    refused("a page from a file", "page of another site", 403, "POST", "/paint", GOOD,
            {**JSON, "origin": "null"}),
    refused("another port's page", "page of another site", 403, "POST", "/paint", GOOD,
            {**JSON, "origin": "http://127.0.0.1:9000"}),
    refused("a name that leads here", "another name", 403, "POST", "/paint", GOOD,
            {**JSON, "host": "evil.example:8000"}),
    refused("the page by a name that leads here", "another name", 403, "GET", "/", b"",
            {"host": "evil.example"}),
    refused("no name", "another name", 403, "GET", "/", b"", {}),
    refused("a name that is none", "another name", 403, "GET", "/", b"", {"host": "[::1"}),
    refused("painting by GET", "Method Not Allowed", 405, "GET", "/paint"),
    refused("the page by POST", "Method Not Allowed", 405, "POST", "/", GOOD),
    refused("DELETE", "Method Not Allowed", 405, "DELETE", "/paint"),
    refused("a method that is none", "Method Not Allowed", 405, "BREW", "/"),
    refused("a path out of the folder", "Not Found", 404, "GET", "/../../etc/passwd"),
    refused("an escaped path out of the folder", "Not Found", 404, "GET", "/%2e%2e/%2e%2e/etc/passwd"),
    refused("a file of the package", "Not Found", 404, "GET", "/page.html"),
    refused("a path of 100,000 characters", "Not Found", 404, "GET", "/" + "a" * 100_000),
]  # fmt: skip
