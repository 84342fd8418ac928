"""Train, kill, train again, compare: `kill_runs.py RECIPE FOLDER SIGNAL SHARE...` prints "same" or "other" per share.

It prints "lost" where a signal that a run saves at (SIGTERM, SIGHUP) lost a step that was done.

Each run is a forked child of a process that has only imported the package, so that the moments of killing fall into
training and saving instead of into imports.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

from vlm_r1.config_file import load_config
from vlm_r1.distributed.whole import list_checkpoints
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_metrics
from vlm_r1.sft import train as sft

TRAIN = {"grpo": loop.train, "sft": sft.train}


def start(recipe: str, run_dir: Path) -> int:
    """A child that runs the recipe in this folder; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            settings = load_config(recipe, [f"run.dir={run_dir}"])
            TRAIN[settings.method](settings)
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            os._exit(code)
    return child


def finish(recipe: str, run_dir: Path) -> tuple[str, list[int]]:
    """Run to the end; the final weights' hash and the steps in the metrics."""
    _, status = os.waitpid(start(recipe, run_dir), 0)
    if status:
        raise SystemExit(f"{run_dir}: the run ended with {status}")
    weights = next((run_dir / "final").glob("*model.safetensors")).read_bytes()
    return hashlib.sha256(weights).hexdigest(), [row["step"] for row in read_metrics(run_dir)]


def is_lost(status: int, number: int, run_dir: Path) -> bool:
    """Whether a run that saves when it is stopped did not."""
    if number == signal.SIGKILL or status == 0:
        return False
    done, saved = read_metrics(run_dir), list_checkpoints(run_dir)
    return (
        os.waitstatus_to_exitcode(status) != 128 + number
        or bool(done) != bool(saved)
        or (bool(saved) and saved[-1].name != f"checkpoint-{done[-1]['step']}")
    )


def main(recipe: str, folder: Path, number: int, shares: list[float]) -> None:
    """Compare each killed run with the one never killed."""
    began = time.monotonic()
    expected = finish(recipe, folder / "never-killed")
    whole = time.monotonic() - began
    for count, share in enumerate(shares):
        run_dir = folder / f"killed-{count}"
        child = start(recipe, run_dir)
        time.sleep(share * whole)
        os.kill(child, number)
        _, status = os.waitpid(child, 0)
        lost = is_lost(status, number, run_dir)
        print("lost" if lost else "same" if finish(recipe, run_dir) == expected else "other", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), signal.Signals[sys.argv[3]], [float(share) for share in sys.argv[4:]])
