"""`--processes N`: the same command on N processes of this machine, by torch's own launcher.

A process that dies ends the others, is named, and all start again from the last checkpoint; a mistake of the user's
(exit code 2) ends them for good. On several machines torchrun does the same: docs/scale-out.md.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from vlm_r1.errors import ClusterError, Stopped

USER_ERROR = 2
"""Exit code of a process that already said what is wrong."""
STOPPED = {128 + signal.SIGTERM, 128 + signal.SIGHUP}
"""Exit codes of processes that a signal ended, which saved first."""
GRACE_S = 600
"""Seconds that processes have to save after a signal: whoever sent it decides how long, and kills then."""


def launch(arguments: Sequence[str], count: int, restarts: int) -> None:
    """Run `vlm-r1 ARGUMENTS` on `count` processes, again up to `restarts` times after a failure.

    Raises `ClusterError` where they still fail, `SystemExit` after a message that a process gave, `Stopped` after a
    signal, which the processes get too.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if "RANK" in os.environ:
        raise ClusterError("--processes: this is one of the processes of torchrun already; leave the option out")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under nohup, which torch would undo
        os.environ.setdefault("TORCHELASTIC_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGQUIT")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    for attempt in range(restarts + 1):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=f"vlm-r1-{os.getpid()}-{attempt}",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(),
            shutdown_timeout=GRACE_S,
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "vlm_r1", *arguments)
            return
        except SignalException as error:
            raise KeyboardInterrupt if error.sigval == signal.SIGINT else Stopped.by(error.sigval) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode == USER_ERROR:
                raise SystemExit(USER_ERROR) from None
            if failure.exitcode in STOPPED:
                raise Stopped(failure.exitcode) from None
            told = f"rank {rank} (process {failure.pid}) {ended(failure.exitcode)}"
        if attempt < restarts:
            again = f"starting again from the last checkpoint ({attempt + 1} of {restarts})"
            print(f"{told}; {again}", file=sys.stderr, flush=True)
    raise ClusterError(f"{told}; gave up after {restarts} restarts. The same command continues the run")


def ended(code: int) -> str:
    """How a process ended, in words.

    >>> ended(-9), ended(1)
    ('was killed by SIGKILL', 'failed with exit code 1')
    """
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"
