"""What a served page takes: the requests that it makes itself, of a bounded size, over so many connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_CONNECTIONS = 200
PATIENCE_S = 20.0
"""Seconds within which a connection brings a whole request, or is closed."""
MAX_BODY_BYTES = 2 * 2**20
"""Of a request that is no upload."""

API = "/gradio_api"
EVENTS = frozenset({f"{API}/queue/join", f"{API}/run/predict", f"{API}/cancel", f"{API}/reset"})
"""Where gradio's pages post what the user does."""
UPLOAD = f"{API}/upload"


class Limits:
    """The limits of one page, kept by `Gate` and by the server that was handed to `watch`."""

    def __init__(self, max_upload_bytes: int = 0) -> None:
        self.max_bytes = dict.fromkeys(EVENTS, MAX_BODY_BYTES)
        if max_upload_bytes:
            self.max_bytes[UPLOAD] = max_upload_bytes
        self._open: WeakSet[asyncio.Transport] = WeakSet()
        self._waiting: dict[Any, Callable[[], None]] = {}

    def watch(self, server: Any) -> None:
        """Limit the connections that a `uvicorn.Server` takes from now on."""
        limits, kind = self, server.config.http_protocol_class

        class Limited(kind):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                limits.opened(transport)

        server.config.http_protocol_class = Limited

    def opened(self, transport: asyncio.Transport) -> None:
        """Take a new connection, or close it where there are too many."""
        if sum(not other.is_closing() for other in self._open) >= MAX_CONNECTIONS:
            transport.close()
            return
        self._open.add(transport)
        self.wait(transport.get_extra_info("peername"), transport.close)

    def wait(self, peer: Any, close: Callable[[], None]) -> None:
        """Close a connection unless it brings a request in time."""

        def over() -> None:
            if self._waiting.get(peer) is close:
                del self._waiting[peer]
                close()

        self._waiting[peer] = close
        asyncio.get_running_loop().call_later(PATIENCE_S, over)

    def came(self, peer: Any) -> Callable[[], None] | None:
        """A request has come; how to close its connection."""
        return self._waiting.pop(peer, None)


class Gate:
    """ASGI middleware: refuses what the page never asks for, and what is larger than that can be."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's start and end."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        peer = scope.get("client")
        close = self.limits.came(peer)
        try:
            most = self.limits.max_bytes.get(scope["path"].rstrip("/"), 0)
            if scope["method"] not in ("GET", "HEAD") and not most:
                return await PlainTextResponse("not found", 404)(scope, receive, send)
            return await self.app(scope, _up_to(most, receive), send)
        finally:
            if close is not None:
                self.limits.wait(peer, close)


def _up_to(most: int, receive: Receive) -> Receive:
    """`receive`, which raises `HTTPException` once a body is larger than so many bytes."""
    got = 0

    async def limited() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise HTTPException(413, "the request is too large")
        return message

    return limited
