"""Runs jobs as processes of their own, several at once; what is done is skipped, what was interrupted continues."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from vlm_r1.errors import StudyError
from vlm_r1.lab.grid import Job
from vlm_r1.runtime.runlog import read_eval, read_metrics, write_atomically

MARK = "lab.json"
"""What the lab notes in a run folder: the settings' fingerprint, the command, the commit."""
LOG = "lab.log"
VLM_R1 = (sys.executable, "-m", "vlm_r1")
POLL_S = 0.2
CHANGES = "+changes"
"""The end of a commit whose files were changed."""
TAIL = 5
"""Lines of a failed run's log that its message repeats."""


def is_done(job: Job) -> bool:
    """Whether the run of a job is finished: its final model and its last evaluation are there.

    Raises `StudyError` where the folder holds a run with other settings.
    """
    mark = read_mark(job.folder)
    if mark and mark["fingerprint"] != job.fingerprint():
        raise StudyError(
            f"{job.folder}: holds a run with other settings than {job.name} has today ({job.folder / MARK}). "
            "Remove that folder to run it again, or give another one with --runs"
        )
    if not mark or not (job.folder / "final").is_dir():
        return False
    return not job.settings().data.eval or "after" in read_eval(job.folder)


def reused(jobs: Sequence[Job], runs: Path) -> list[Job]:
    """The jobs, each in the folder of a finished run with the same settings where another study has one.

    Studies overlap: one's arm is another's point of comparison. A run that a study has begun itself stays its own.
    """
    marks = {read_mark(file.parent)["fingerprint"]: file.parent for file in sorted(runs.glob(f"*/*/*/{MARK}"))}
    found = []
    for job in jobs:
        other = replace(job, folder=marks.get(job.fingerprint(), job.folder))
        found.append(job if read_mark(job.folder) or not is_done(other) else other)
    return found


def state_of(job: Job) -> str:
    """ "done", "at step N of M", or "not started". Raises `StudyError` as `is_done` does."""
    if is_done(job):
        return "done"
    metrics = read_metrics(job.folder)
    return f"at step {metrics[-1]['step']} of {job.settings().run.steps}" if metrics else "not started"


def read_mark(folder: Path) -> dict[str, Any]:
    """What the lab noted in a run folder; empty where it did not run there. Raises `StudyError`."""
    file = folder / MARK
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise StudyError(f"{file}: not JSON ({error}); remove the folder to run it again") from None


def run_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    threads: int,
    say: Callable[[str], None],
    command: Sequence[str] = VLM_R1,
) -> None:
    """Run all jobs that are not done, `at_once` at a time with `threads` threads each, or more where jobs are fewer.

    A run that fails does not stop the others; at the end a `StudyError` names every one that failed with the end of
    its log. Interrupted, it ends its processes, whose runs continue from their checkpoints when this is called again.
    """
    waiting = [job for job in jobs if not is_done(job)]
    if len(jobs) > len(waiting):
        say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done already")
    total, running, failed = len(waiting), dict[Job, _Process](), list[Job]()
    threads *= at_once // max(1, min(at_once, total))  # a base that is alone has all of them
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job] = _Process(job, threads, command)
                say(f"[{total - len(waiting)}/{total}] {job.name}: started")
            time.sleep(POLL_S)
            for job, process in list(running.items()):
                code = process.code()
                if code is None:
                    continue
                del running[job]
                good = code == 0 and is_done(job)
                say(f"{job.name}: {'finished' if good else f'failed with exit code {code}'} after {process.time()}")
                failed += [] if good else [job]
    finally:
        for process in running.values():
            process.end()
    if failed:
        told = "\n".join(f"{job.name} ({job.folder / LOG}):\n{_tail(job.folder / LOG)}" for job in failed)
        raise StudyError(
            f"{len(failed)} of {total} runs failed; the others are kept. The same command tries these again:\n{told}"
        )


class _Process:
    """The process of one run, writing into the run's log."""

    def __init__(self, job: Job, threads: int, command: Sequence[str]) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        arguments = job.command(threads)
        self.started = time.monotonic()
        self.log: IO[bytes] = open(job.folder / LOG, "ab")  # noqa: SIM115  (closed when the process has ended)
        _lock(self.log, job)
        _mark(job, arguments)
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "NO_COLOR": "1"},
        )

    def code(self) -> int | None:
        """The exit code; None while it runs."""
        code = self.process.poll()
        if code is not None:
            self.log.close()
        return code

    def end(self) -> None:
        """End the process and wait for it."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def time(self) -> str:
        """Minutes and seconds since the start."""
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return f"{minutes} min {seconds} s"


def _lock(log: IO[bytes], job: Job) -> None:
    """One process a folder. The run inherits the lock with its output: it holds even where this process was killed."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise StudyError(
            f"{job.folder}: another process is running {job.name}; wait for it or end it (its output is in {LOG})"
        ) from None


def _mark(job: Job, arguments: Sequence[str]) -> None:
    """Note what runs here. The commit is that of the start: a run that continues keeps it beside the later one."""
    commits = [*read_mark(job.folder).get("commits", []), commit()]
    mark = {
        "fingerprint": job.fingerprint(),
        "command": ["vlm-r1", *arguments],
        "commits": list(dict.fromkeys(commits)),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(job.folder / MARK, (json.dumps(mark, indent=2) + "\n").encode())


def commit() -> str:
    """The commit of the working folder, with `+changes` where files differ from it; "unknown" outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "recipes")
        return git("rev-parse", "--short=12", "HEAD") + (CHANGES if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return "\n".join(f"    {line}" for line in lines[-TAIL:])


def best_value(searched: dict[float, list[Job]], split: str, metric: str) -> tuple[float, dict[float, float]]:
    """The value with the highest mean of a held-out metric over its runs, and the mean of each.

    Raises `StudyError` where a run has no such metric.
    """
    means = {}
    for value, jobs in searched.items():
        try:
            found = [float(read_eval(job.folder)["after"][split][metric]) for job in jobs]
        except (KeyError, TypeError):
            raise StudyError(
                f"{jobs[0].name}: no {metric} of split {split} after training; is it in data.eval?"
            ) from None
        means[value] = sum(found) / len(found)
    return max(means, key=lambda value: means[value]), means
