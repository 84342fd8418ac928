"""Train, kill -9, train again, compare: `kill_runs.py RECIPE FOLDER SHARE...` prints "same" or "other" per share.

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
from vlm_r1.rl.loop import train
from vlm_r1.runtime.runlog import read_metrics


def start(recipe: str, run_dir: Path) -> int:
    """A child that runs the recipe in this folder; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(load_config(recipe, [f"run.dir={run_dir}"]))
            code = 0
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


def main(recipe: str, folder: Path, shares: list[float]) -> None:
    """Compare each killed run with the one never killed."""
    began = time.monotonic()
    expected = finish(recipe, folder / "never-killed")
    whole = time.monotonic() - began
    for number, share in enumerate(shares):
        run_dir = folder / f"killed-{number}"
        child = start(recipe, run_dir)
        time.sleep(share * whole)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print("same" if finish(recipe, run_dir) == expected else "other", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [float(share) for share in sys.argv[3:]])
