"""Who writes a run folder, and whether it still does; and that a run which never began leaves no folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from vlm_r1.errors import CheckpointError, UserError
from vlm_r1.report.runs import list_runs
from vlm_r1.runtime import alive
from vlm_r1.runtime.alive import FILE, LOCK, Lock, is_alive, sign
from vlm_r1.runtime.runlog import RunLog, check_writable

SIGNED = (
    "import sys, time; from pathlib import Path; from vlm_r1.runtime.alive import Lock, sign\nrun = Path(sys.argv[1])\n"
)
SIGNED += "with Lock(run) as lock, sign(run):\n    lock.take()\n    print('signed', flush=True)\n    time.sleep(60)"


@pytest.fixture
def signed(tmp_path):
    """A run folder, and the process that signed it and sleeps."""
    run = tmp_path / "run"
    RunLog(run).metrics(1, {"reward": 0.5})
    (run / "config.yaml").write_text("run: {steps: 4}\n")
    with subprocess.Popen([sys.executable, "-c", SIGNED, str(run)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "signed\n"
            yield run, process
        finally:
            process.kill()


def state(run, quiet=0.0):
    [found] = list_runs(run.parent, now=(run / "metrics.jsonl").stat().st_mtime + quiet)
    return found.state


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_run_is_running_while_its_process_is_there_and_stopped_from_then_on(signed, ending):
    run, process = signed
    assert is_alive(run) is True and state(run) == "running"
    assert state(run, quiet=5000.0) == "running", "a long step writes nothing"
    process.send_signal(ending)
    process.wait()
    assert is_alive(run) is False and state(run) == "stopped"


def test_an_id_that_another_process_has_since_is_not_the_run(signed):
    run, _ = signed
    found = json.loads((run / FILE).read_text())
    (run / FILE).write_text(json.dumps(found | {"started": 1}))
    assert is_alive(run) is False
    (run / FILE).write_text(json.dumps(found | {"host": socket.gethostname() + "-other"}))
    assert is_alive(run) is None and (state(run), state(run, 601.0)) == ("running", "stopped")
    (run / FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"process\.json: not JSON"):
        is_alive(run)
    (run / FILE).unlink()
    assert is_alive(run) is None


def test_a_run_that_ended_is_not_alive_though_its_process_goes_on(tmp_path):
    with pytest.raises(KeyError), sign(tmp_path):
        assert is_alive(tmp_path) is True and json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
        raise KeyError
    assert is_alive(tmp_path) is False


def taken(run):
    with Lock(run) as lock:
        lock.take()


def test_a_second_process_in_a_run_folder_is_refused_until_the_first_is_gone(signed):
    run, process = signed
    told = rf"{run}: process {process.pid} on {socket.gethostname()} trains in this folder, .* has changed nothing"
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(CheckpointError, match=told):
        taken(run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    (run / FILE).unlink()
    with pytest.raises(CheckpointError, match="another process trains"):
        taken(run)
    process.kill()  # the kernel takes the lock back
    process.wait()
    taken(run)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_the_signature_counts(signed, monkeypatch, capsys, error):
    def refuses(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(alive.fcntl, "lockf", refuses)
    run, process = signed
    with pytest.raises(CheckpointError, match=f"process {process.pid} on"):
        taken(run)
    process.kill()
    process.wait()
    taken(run)
    assert "its file system has no locks" in capsys.readouterr().err


def test_the_lock_ends_with_its_block_and_makes_no_folder(tmp_path):
    taken(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    code = "import sys; from pathlib import Path; from vlm_r1.runtime.alive import Lock\nLock(Path(sys.argv[1])).take()"
    with Lock(tmp_path) as lock:
        lock.take()
        lock.take()
        child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert child.returncode == 1 and "trains in this folder" in child.stderr
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
    from vlm_r1.config import Recipe
    from vlm_r1.rl.loop import train

    source = {"scenes": {"split": "train", "n": 4}}
    recipe = {"model": {"path": str(tmp_path / "missing")}, "data": {"train": [source]}}
    with pytest.raises(UserError, match="missing"):
        train(Recipe.model_validate(recipe | {"run": {"dir": str(tmp_path / "runs" / "new")}}))
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"run\.dir .*: .*file is not a folder; set run\.dir to a folder"):
        train(Recipe.model_validate(recipe | {"run": {"dir": str(tmp_path / "file" / "run")}}))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(CheckpointError, match=f"{tmp_path} cannot be written to"):
        check_writable(tmp_path / "a" / "b")
