"""The chat route of OpenAI's interface over a model folder, for tool kits that ask a server (VLMEvalKit, lmms-eval).

Chat completions with data-URL images alone; on this computer alone; one request is answered at a time.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from vlm_r1.errors import EngineError, UserError
from vlm_r1.eval.elsewhere import Answerer
from vlm_r1.records import SampleImage

MAX_BODY_BYTES = 256 * 2**20
MAX_NEW_TOKENS = 1024
"""Where a request names no `max_tokens`."""


class ApiServer(ThreadingHTTPServer):
    """`ApiServer(answerer, "mine", port).serve_forever()`; port 0 takes a free one. Raises `EngineError`."""

    daemon_threads = True

    def __init__(self, answerer: Answerer, name: str, port: int) -> None:
        self.answerer, self.name, self.lock = answerer, name, threading.Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise EngineError(f"--port {port}: cannot be used ({error.strerror}); name another one") from None

    @property
    def url(self) -> str:
        """What clients take as their base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def chat_completion(request: Any, answerer: Answerer, name: str) -> dict[str, Any]:
    """The reply to a request for a chat completion. Raises `UserError` for one that cannot be answered."""
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
        raise EngineError("the request has no list of messages")
    if request.get("stream") or request.get("n", 1) != 1:
        raise EngineError("stream and n are not supported; ask for one whole completion")
    images: list[Image.Image] = []
    texts: list[str] = []
    for message in request["messages"]:
        content = message.get("content") if isinstance(message, dict) else None
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
            if part.get("type") == "text":
                texts.append(str(part.get("text", "")))
            elif part.get("type") == "image_url":
                images.append(_image(part.get("image_url")))
            else:
                raise EngineError(f"content of type {part.get('type')} is not supported; send text and image_url")
    if not texts:
        raise EngineError("the request has no text")
    most = request.get("max_completion_tokens") or request.get("max_tokens") or MAX_NEW_TOKENS
    temperature, seed = float(request.get("temperature") or 0.0), int(request.get("seed") or 0)
    [text] = answerer.answer([(images, "\n".join(texts))], int(most), temperature, seed)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": f"chatcmpl-{time.time_ns()}", "object": "chat.completion", "model": name, "choices": [choice]}


def _image(value: Any) -> Image.Image:
    url = value.get("url") if isinstance(value, dict) else value
    head, _, data = str(url).partition(",")
    if not head.startswith("data:image/") or not head.endswith(";base64"):
        raise EngineError("an image is not a data URL; nothing is downloaded: send data:image/png;base64,...")
    try:
        return SampleImage(data=base64.b64decode(data, validate=True)).open()
    except binascii.Error:
        raise EngineError("an image is not valid base64") from None


class _Handler(BaseHTTPRequestHandler):
    server: ApiServer
    timeout = 60  # seconds that a client may bring nothing: each holds a thread

    def do_GET(self) -> None:
        """The list of models: this one."""
        if self.path.rstrip("/") == "/v1/models":
            return self._reply(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        return self._refuse(404, f"{self.path}: there are /v1/models and /v1/chat/completions")

    def do_POST(self) -> None:
        """A chat completion."""
        if self.path.rstrip("/") != "/v1/chat/completions":
            return self._refuse(404, f"{self.path}: there are /v1/models and /v1/chat/completions")
        try:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= MAX_BODY_BYTES:
                return self._refuse(413, f"a request has 1 to {MAX_BODY_BYTES} bytes and a Content-Length")
            request = json.loads(self.rfile.read(length))
            with self.server.lock:
                reply = chat_completion(request, self.server.answerer, self.server.name)
        except (UserError, ValueError, AttributeError, TypeError, ArithmeticError, RecursionError) as error:
            return self._refuse(400, str(error))
        return self._reply(200, reply)

    def _refuse(self, status: int, why: str) -> None:
        self._reply(status, {"error": {"message": why, "type": "invalid_request_error"}})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each of thousands of questions tells nobody anything."""
