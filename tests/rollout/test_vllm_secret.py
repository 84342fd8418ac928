"""The shared secret of a server: every route but the two that say that it runs is refused without it."""

import asyncio
import importlib.util

import pytest

from vlm_r1.rollout.vllm_launch import WORKER


@pytest.fixture
def guard(monkeypatch):
    """The middleware as vLLM loads it: from a file, outside of the package; and what it lets through."""
    monkeypatch.setenv("VLM_R1_SECRET", "s3cret")
    spec = importlib.util.spec_from_file_location("vlm_r1_secret", WORKER / "vlm_r1_secret.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    passed = []

    async def app(scope, receive, send):
        passed.append(scope)

    return module.RequireSecret, app, passed


def ask(guard, path="/pause", kind="http", headers=(), **scope) -> list[dict]:
    """What is sent back for a request."""
    middleware, app, _ = guard
    sent = []

    async def send(message):
        sent.append(message)

    scope |= {"type": kind, "path": path, "headers": list(headers)}
    asyncio.run(middleware(app)(scope, None, send))
    return sent


BEARER = (b"authorization", b"Bearer s3cret")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Bearer s3cre")],
        [(b"authorization", b"Bearer s3crets")],
        [(b"authorization", b"s3cret")],
        [(b"authorization", "Bearer s3crét".encode("latin-1"))],
        [(b"x-api-key", b"s3cret")],
        [(b"authorization", b"Bearer wrong"), BEARER],
    ],
)
@pytest.mark.parametrize("path", ["/update_weights", "/inference/v1/generate", "/health/", "/healthz", "//health", "/"])
def test_a_request_without_the_secret_is_refused(guard, headers, path):
    start, body = ask(guard, path, headers=headers, method="POST")
    assert start["status"] == 401
    assert b"secret" in body["body"]
    assert not guard[2]


def test_with_the_secret_every_route_answers(guard):
    for path in ("/update_weights", "/v1/models", "/health"):
        assert ask(guard, path, headers=[(b"accept", b"*/*"), BEARER]) == []
    assert ask(guard, "/health") == ask(guard, "/ping") == ask(guard, kind="lifespan") == []
    assert len(guard[2]) == 6


def test_other_methods_and_web_sockets_need_it_too(guard):
    assert ask(guard, method="OPTIONS")[0]["status"] == 401
    assert ask(guard, "/v1/realtime", "websocket") == [{"type": "websocket.close", "code": 1008}]
    assert not guard[2]


def test_a_server_that_knows_no_secret_does_not_start(guard, monkeypatch):
    monkeypatch.setenv("VLM_R1_SECRET", "")
    with pytest.raises(RuntimeError, match="VLM_R1_SECRET"):
        guard[0](guard[1])
