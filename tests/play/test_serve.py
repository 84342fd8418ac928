"""`vlm-r1 play` as a process: what is refused before anything is served, and what is left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.request import urlopen

import pytest

from vlm_r1.cli import main


def call(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["play", *map(str, arguments)])
    return stopped.value.code


def test_what_cannot_be_served_is_refused_with_one_message(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty") == 2
    assert "is not a model folder" in capsys.readouterr().err
    assert call("tiny", tmp_path / "empty") == 2
    assert "is not a model folder" in capsys.readouterr().err
    assert call("tiny", "--image-root", tmp_path / "missing") == 2
    assert "is not a folder; name one that holds images" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert call(tmp_path / "empty", "--port", port) == 2, "before a model is loaded"
    assert capsys.readouterr().err.startswith(f"error: --port {port}: is taken by another program on 127.0.0.1")
    assert {path.name for path in tmp_path.iterdir()} <= {"empty", "gradio"}  # gradio makes its own when imported


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert call("tiny") == 2
    error = capsys.readouterr().err
    assert "pip install 'vlm-r1[ui]'" in error and "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_private_folder_is_the_users_alone_and_goes_with_the_server(tmp_path, stop):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from vlm_r1.cli import main; main()"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    run = [sys.executable, "-c", code, "play", "tiny"]
    with subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line).group()
            with urlopen(address) as page:
                assert page.status == 200
            [folder] = Path(tmp_path).glob("vlm-r1-*")
            assert folder.stat().st_mode & 0o077 == 0
            server.send_signal(stop)
            assert server.wait(timeout=20) == (0 if stop == signal.SIGINT else 143)
        finally:
            server.kill()
    assert not list(tmp_path.glob("vlm-r1-*"))
