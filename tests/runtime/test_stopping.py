"""SIGTERM and SIGHUP: noted, and obeyed where nothing is half done; a run saves first and says how to continue."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from support import recipe

from vlm_r1.config_file import resolved_yaml
from vlm_r1.distributed.processes import World
from vlm_r1.distributed.whole import list_checkpoints
from vlm_r1.errors import Stopped
from vlm_r1.runtime.runlog import read_metrics
from vlm_r1.runtime.stopping import Signals

CONTROLLED = (
    "import fcntl, os, sys, termios\n"
    "os.setsid()\n"
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
)
"""Python in a session of its own, whose terminal is standard input's."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_what_comes_before_the_session_and_later_waits_for_a_sign_of_life(number, code):
    world = World()
    with pytest.raises(Stopped) as stopped, Signals(world):
        os.kill(os.getpid(), number)
    assert stopped.value.code == code and signal.getsignal(number) == signal.SIG_DFL
    world = World()
    with pytest.raises(Stopped) as stopped, Signals(world) as signals:
        signals.begin()
        world.may_stop = False
        os.kill(os.getpid(), number)
        world.beat("in the middle of an update")
        with world.alone(), pytest.raises(Stopped):
            world.beat()
        assert not world.may_stop and world.asked().code == code
        world.may_stop = True
        world.beat()
    assert stopped.value.code == code


def test_a_signal_that_is_ignored_or_handled_stays_so():
    seen = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with Signals(World()):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [1] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_a_process_of_several_does_not_leave_the_others_in_a_collective():
    world = World(size=2)
    with Signals(world) as signals:
        signals.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        world.beat("reward")
        with world.alone(), pytest.raises(Stopped):
            world.beat("a token")


def begun(process, run_dir, reader):
    """Wait until the run has done two steps; what it writes meanwhile is read, so that it does not wait."""
    os.set_blocking(reader, False)
    end, said = time.monotonic() + 60, b""
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(BlockingIOError):
            said += os.read(reader, 1 << 16)
        if run_dir.is_dir() and len(read_metrics(run_dir)) >= 2:
            os.set_blocking(reader, True)
            return said.decode()
        time.sleep(0.05)
    raise AssertionError("the run has not begun")


@pytest.mark.parametrize("terminal", [False, True])
def test_the_command_saves_says_how_to_continue_and_ends_with_the_signals_code(model_folder, tmp_path, terminal):
    """With a terminal: it is closed, as when a connection is lost, and nothing can be printed any more."""
    run_dir, file = tmp_path / "run", tmp_path / "my.yaml"
    file.write_text(resolved_yaml(recipe(model_folder, run_dir, run={"steps": 5000, "save_every": 5000})))
    command = ["-m", "vlm_r1", "train", str(file)]
    reader, writer = pty.openpty() if terminal else os.pipe()
    arguments = ["-c", CONTROLLED, *command] if terminal else command
    streams = {"stdin": writer if terminal else subprocess.DEVNULL, "stdout": writer, "stderr": writer}
    with subprocess.Popen([sys.executable, *arguments], **streams) as process:
        os.close(writer)
        try:
            said = begun(process, run_dir, reader)
            if terminal:
                os.close(reader)
            else:
                process.terminate()
            assert process.wait(60) == (129 if terminal else 143)
        finally:
            process.kill()
    saved, done = list_checkpoints(run_dir), read_metrics(run_dir)
    assert [path.name for path in saved] == [f"checkpoint-{done[-1]['step']}"]
    if not terminal:
        with open(reader) as output:
            said += output.read()
        assert f"stopped by SIGTERM; saved {saved[0].name}. The same command continues the run" in said
        assert said.endswith(f"Stopped. To continue from the last checkpoint: vlm-r1 train {file}\n")
