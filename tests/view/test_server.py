"""`vlm-r1 view` as a command: what is refused before anything is served, and that nothing but the page is asked."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from urllib.request import ProxyHandler, build_opener

import pytest

from vlm_r1.cli import main
from vlm_r1.view.server import Runs


def call(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["view", *map(str, arguments)])
    return stopped.value.code


def test_what_cannot_be_looked_at_is_refused_with_one_message(capsys, tmp_path, run_dir):
    for arguments, message in (
        ([tmp_path / "nothing"], "no such run folder"),
        ([tmp_path], "not a run folder, and there is none inside"),
        ([run_dir / "config.yaml"], "no such run folder"),
        ([run_dir, run_dir / "."], "given twice"),
    ):
        assert call(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert call(run_dir, "--port", taken.getsockname()[1]) == 2
        port = taken.getsockname()[1]
    error = capsys.readouterr().err
    assert error == f"error: --port {port}: is taken by another program on 127.0.0.1; name another port, or leave " + (
        "--port out to take the first free one\n"
    )


def test_without_gradio_the_command_says_what_to_install(capsys, monkeypatch, run_dir):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert call(run_dir) == 2
    error = capsys.readouterr().err
    assert "pip install 'vlm-r1[ui]'" in error and "Traceback" not in error


def test_runs_have_names_that_differ(make_run, tmp_path):
    folders = [make_run(tmp_path / place / "demo", steps=1, phases=()) for place in ("a", "b")]
    assert [run.name for run in Runs(folders).new()] == ["a/demo", "b/demo"]
    assert [run.name for run in Runs(folders[:1]).new()] == ["demo"]


def test_a_folder_stands_for_the_runs_inside_the_last_written_first_and_for_later_ones(make_run, tmp_path):
    for age, place in ((900, "old"), (100, "sweep/lr/seed-0"), (50, "sweep/lr/seed-1")):
        folder = make_run(tmp_path / place, steps=1, phases=())
        for file in folder.iterdir():
            os.utime(file, (1e9 - age, 1e9 - age))
    (tmp_path / "notes").mkdir()
    runs = Runs([tmp_path])
    assert [run.name for run in runs.new()] == ["sweep/lr/seed-1", "sweep/lr/seed-0", "old"]
    assert runs.new() == []
    make_run(tmp_path / "new", steps=1, phases=())
    shutil.rmtree(tmp_path / "old")
    assert [run.name for run in runs.new()] == ["new"]
    assert [run.name for run in Runs([tmp_path / "sweep" / "lr", tmp_path / "new"]).new()] == [
        "seed-1",
        "seed-0",
        "new",
    ]


@pytest.mark.slow
def test_the_server_asks_nobody_and_goes_quietly(tmp_path, run_dir):
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        surroundings = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), address)
        run = [sys.executable, "-c", "from vlm_r1.cli import main; main()", "view", str(run_dir)]
        with subprocess.Popen(
            run,
            env=os.environ | surroundings | {"TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                url = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline()).group()
                with build_opener(ProxyHandler({})).open(url) as page:
                    assert page.status == 200
                server.send_signal(signal.SIGTERM)
                assert server.wait(timeout=20) == 143
            finally:
                server.kill()
            assert "Traceback" not in server.stderr.read()
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert not list(tmp_path.glob("vlm-r1-*"))
