"""What a served page refuses: routes that it does not use, large requests, connections that bring nothing."""

import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from vlm_r1.report import limits, web

gradio = pytest.importorskip("gradio")


@pytest.fixture
def serve():
    """`serve(uploads=True)` is the address and the private folder of a page."""
    with web.private_folder() as folder:
        pages = []

        def served(**settings):
            web.require_gradio()
            with gradio.Blocks(analytics_enabled=False) as page:
                gradio.Image(type="filepath")
            pages.append(page)
            return web.launch(page, folder, **settings), folder

        yield served
        for page in pages:
            page.close(verbose=False)


def connected(url):
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=5)


def is_closed(connection, within):
    """Whether the server closes a connection that brings nothing more."""
    connection.settimeout(within)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def test_a_page_without_uploads_takes_none_and_its_other_doors_are_closed(serve):
    url, folder = serve()
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("config").status_code == 200
        for route in ("upload", "upload/", "process_recording", "component_server", "run/other", "vibe-edit"):
            assert client.post(f"gradio_api/{route}", files={"files": ("a.png", b"x")}).status_code == 404
        assert client.request("PUT", "").status_code == 404
        assert client.post("gradio_api/queue/join", content=b"[" * 3_000_000).status_code == 413
        assert client.post("gradio_api/queue/join", content=(b"[" * 999_999 for _ in range(4))).status_code == 413
        assert client.post("gradio_api/queue/join", json={}).status_code not in (404, 413)
    assert not [path for path in folder.rglob("*") if path.is_file()]


def test_uploads_are_limited_all_of_a_request_together(serve, monkeypatch):
    monkeypatch.setattr(web, "MAX_UPLOAD_BYTES", 5000)
    url, folder = serve(uploads=True)
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert client.post("gradio_api/upload", files={"files": ("a.png", b"x" * 3000)}).status_code == 200
        many = [("files", (f"{i}.png", b"x" * 3000)) for i in range(3)]
        assert client.post("gradio_api/upload", files=many).status_code == 413
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["a.png"]


def test_a_connection_that_brings_no_request_is_closed(serve, monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE_S", 0.3)
    url, _ = serve()
    silent, cut, used = (connected(url) for _ in range(3))
    cut.sendall(b"GET /con")
    used.sendall(b"GET /config HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert used.recv(12) == b"HTTP/1.1 200"
    assert is_closed(silent, within=5) and is_closed(cut, within=5)


def test_the_number_of_connections_is_bounded(serve, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CONNECTIONS", 4)
    url, _ = serve()
    first = [connected(url) for _ in range(4)]
    assert is_closed(connected(url), within=2)
    first[0].close()
    time.sleep(0.2)
    assert httpx.Client(trust_env=False).get(f"{url}config").status_code == 200
