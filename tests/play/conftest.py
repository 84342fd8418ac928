"""One loaded tiny model for all tests of the playground, and one served page a file."""

import struct
import time
import zlib

import pytest
from browser import browser, open_page, page  # noqa: F401  (fixtures)

from vlm_r1.play import answers
from vlm_r1.play.answers import load_speaker
from vlm_r1.play.images import Images
from vlm_r1.play.playground import Playground
from vlm_r1.rollout.native import NativeEngine


@pytest.fixture(scope="session")
def speaker():
    return load_speaker("tiny")


@pytest.fixture
def playground(speaker, tmp_path):
    (tmp_path / "private").mkdir()
    made = Playground([speaker], Images((tmp_path / "private").resolve()))
    yield made
    made.close()


@pytest.fixture
def slowly(monkeypatch):
    """Each token takes at least 60 ms, and each is shown."""
    generate = NativeEngine.generate

    def slow(*args, watch, **settings):
        def wait(tokens, lengths):
            time.sleep(0.06)
            watch(tokens, lengths)

        return generate(*args, watch=wait, **settings)

    monkeypatch.setattr(NativeEngine, "generate", slow)
    monkeypatch.setattr(answers, "MIN_PAUSE", 0.0)


@pytest.fixture(scope="session")
def huge_png():
    """The file of a PNG that says it has so many pixels a side; there are no pixels behind its header."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def made(side):
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")

    return made
