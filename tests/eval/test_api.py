"""The chat route: what a client of OpenAI's interface sends and gets, and what is refused with a reason."""

import base64
import io
import json
import socket
import threading

import httpx
import pytest

from vlm_r1.config import DataSource
from vlm_r1.data.source import load_source
from vlm_r1.errors import EngineError
from vlm_r1.eval import api
from vlm_r1.eval.api import ApiServer
from vlm_r1.eval.elsewhere import Answerer


@pytest.fixture(scope="module")
def server():
    made = ApiServer(Answerer("tiny", task="rec", boxes="relative_1000"), "tiny", 0)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(scope="module")
def sample():
    return load_source(DataSource.model_validate({"scenes": {"split": "in_domain", "n": 1}}))[0]


def request(sample, **more):
    png = io.BytesIO()
    sample.images[0].open().save(png, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": sample.question}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 64, **more}


def test_an_answer_is_that_of_the_model(server, sample):
    reply = httpx.post(f"{server.url}/chat/completions", json=request(sample, temperature=0), timeout=60)
    text = reply.json()["choices"][0]["message"]["content"]
    assert reply.status_code == 200 and len(json.loads(text)) == 4
    [expected] = Answerer("tiny", task="rec", boxes="relative_1000").answer(
        [([sample.images[0].open()], sample.question)], 64
    )
    assert text == expected
    assert httpx.get(f"{server.url}/models").json()["data"] == [{"id": "tiny", "object": "model"}]


def test_a_text_alone_and_several_clients(server, sample):
    bodies = [request(sample), {"messages": [{"role": "user", "content": "the red circle"}], "max_tokens": 4}] * 2
    found = [None] * len(bodies)

    def ask(place):
        found[place] = httpx.post(f"{server.url}/chat/completions", json=bodies[place], timeout=60).json()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [reply["choices"][0]["message"]["content"] for reply in found]
    assert texts[0] == texts[2] and texts[1] == texts[3] != texts[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the request has no list of messages"),
        ({"messages": []}, "the request has no text"),
        ({"messages": [{"role": "user", "content": "x"}], "stream": True}, "stream and n are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "content of type video_url is not"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}
                ]
            },
            "nothing is downloaded",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,!"}]}
                ]
            },
            "not valid base64",
        ),
        ({"messages": ["x"]}, "the request has no text"),
        ([], "the request has no list of messages"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(server, body, message):
    reply = httpx.post(f"{server.url}/chat/completions", json=body)
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]
    assert httpx.post(f"{server.url}/embeddings", json=body).status_code == 404


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[" * 200_000, "recursion"),
        (rb'{"messages": [{"role": "user", "content": "the \ud83d"}]}', "half a character"),
        (rb'{"messages": [{"role": "user", "content": [{"type": "\ud83d"}]}]}', "is not supported"),
        (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e999}', "infinity"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_hostile_body_is_refused_with_a_reason(server, body, message):
    reply = httpx.post(f"{server.url}/chat/completions", content=body)
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


def test_a_length_that_is_no_number_is_refused(server):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as client:
        client.sendall(head)
        assert client.recv(100).split(b"\r\n")[0].split()[1] == b"400"


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=rf"--port {port}: cannot be used \(.*\); name another one"):
            ApiServer(None, "x", port)


def test_a_client_that_brings_nothing_is_left(server, monkeypatch):
    monkeypatch.setattr(api._Handler, "timeout", 0.2)
    with socket.create_connection(server.server_address, timeout=5) as silent:
        assert silent.recv(1) == b""
    with socket.create_connection(server.server_address, timeout=5) as cut:
        cut.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert cut.recv(1) == b""
