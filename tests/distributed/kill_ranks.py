"""Train on several processes, kill one rank (or all) at some moment, and start again.

kill_ranks.py RECIPE FOLDER PROCESSES SIGNAL SHARE...: prints "same" or "other" for each run killed at these shares of a
run, or "lost" where a signal that runs save at lost a step.
"""

import hashlib
import os
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from vlm_r1.config_file import load_config
from vlm_r1.distributed import processes
from vlm_r1.distributed.whole import list_checkpoints, step_of
from vlm_r1.rl.loop import train
from vlm_r1.runtime.runlog import read_metrics


def start(recipe: str, run_dir: Path, count: int) -> list[int]:
    """Forked children that run the recipe as ranks: the package is already imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.setsid()
            code = 1
            try:
                local = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
                os.environ.update({k: str(v) for k, v in local.items()})
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                torch.set_num_threads(1)
                train(load_config(recipe, [f"run.dir={run_dir}"]))
                processes.stop()
                code = 0
            except SystemExit as stop:
                code = stop.code
            finally:
                os._exit(code)
        children.append(child)
    return children


def finish(recipe: str, run_dir: Path, count: int) -> tuple[str, list[int]]:
    """Run to the end; the final weights' hash and the steps in the metrics."""
    for child in start(recipe, run_dir, count):
        _, status = os.waitpid(child, 0)
        if status:
            raise SystemExit(f"{run_dir}: a rank ended with {status}")
    weights = next((run_dir / "final").glob("*model.safetensors")).read_bytes()
    return hashlib.sha256(weights).hexdigest(), [row["step"] for row in read_metrics(run_dir)]


def main(recipe: str, folder: Path, count: int, how: int, shares: list[float]) -> None:
    """Compare each killed run with the one never killed."""
    began = time.monotonic()
    expected = finish(recipe, folder / "never-killed", count)
    whole = time.monotonic() - began
    for number, share in enumerate(shares):
        run_dir = folder / f"killed-{number}"
        children = start(recipe, run_dir, count)
        time.sleep(share * whole)
        for child in children:
            os.kill(child, how)
        codes = {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}
        done, saved = [row["step"] for row in read_metrics(run_dir)], list_checkpoints(run_dir)
        stops = how != signal.SIGKILL and codes != {0}
        lost = stops and (codes != {128 + how} or [step_of(path) for path in saved[-1:]] != done[-1:])
        print("lost" if lost else "same" if finish(recipe, run_dir, count) == expected else "other", flush=True)


if __name__ == "__main__":
    main(
        sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), signal.Signals[sys.argv[4]], [float(s) for s in sys.argv[5:]]
    )
