"""HTTP requests to an application in this process, as they may come: whole, in pieces, broken off, never."""

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

JSON = {"host": "127.0.0.1:8000", "content-type": "application/json"}


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def answer(
    app: Any,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    headers: dict[str, str] = JSON,
    *,
    breaks_off: bool = False,
    stalls: bool = False,
) -> Answer:
    """The path is as a client writes it, with its escapes."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    received = [
        {"type": "http.request", "body": piece, "more_body": breaks_off or i + 1 < len(pieces)}
        for i, piece in enumerate(pieces)
    ]
    received.append({"type": "http.disconnect"})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if stalls:
            await asyncio.Event().wait()
        return received.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": unquote(path), "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], found, b"".join(each.get("body", b"") for each in sent[1:]))


def ask(app: Any, method: str, path: str, *arguments: Any, **options: Any) -> Answer:
    """`answer`, for tests that do one thing at a time."""
    return asyncio.run(answer(app, method, path, *arguments, **options))
