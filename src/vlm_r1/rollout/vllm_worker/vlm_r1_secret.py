"""What guards every route of a vLLM server: a shared secret. vLLM's own key leaves the development routes open, which
load weights and call any method of a worker."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

OPEN = frozenset({"/health", "/ping"})
"""Paths that answer without the secret: they say that the server runs, and take nothing."""


class RequireSecret:
    """ASGI middleware: 401 for a request without `Authorization: Bearer <VLM_R1_SECRET>`, whatever its route."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        secret = os.environ.get("VLM_R1_SECRET", "")
        if not secret:
            raise RuntimeError("VLM_R1_SECRET is not set: without it this server would answer to nobody")
        self.app = app
        self.expected = f"Bearer {secret}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN or self._knows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "the shared secret is missing or wrong"}'})

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self.expected)
