"""Runs a server as its child and ends both, with all that the server started, once the process that asked for it is
gone: even a killed trainer leaves no server behind.

    python vllm_guard.py PARENT_PID COMMAND...

The guard leads a process group, which its children share. It polls, because a death signal from the kernel would be
tied to the thread that started the server, and would not reach the server's own children. Standard library only: it
is up in milliseconds and small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys

POLL_S = 0.2


def main(parent: int, command: list[str]) -> None:
    """Wait until the command ends or the parent is another process than `parent`; then kill the group."""
    child = subprocess.Popen(command)
    while os.getppid() == parent:
        try:
            code = child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            continue
        print(f"vlm-r1: the server ended with code {code}", file=sys.stderr, flush=True)
        break
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
