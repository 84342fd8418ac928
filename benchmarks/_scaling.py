"""One side of `scaling.py` on the processes of torchrun: _scaling.py JOB.json RESULT.json"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _ours import ban_end_of_text, recipe_of
from _setting import read_job

from vlm_r1.config import DataSource
from vlm_r1.distributed import processes
from vlm_r1.rl import loop
from vlm_r1.runtime.runlog import read_eval, read_metrics


def main() -> None:
    """Run the loop with an evaluation before it; the first process writes every measured step."""
    setting, rest = read_job(sys.argv[1])
    torch.set_num_threads(1)
    seconds: list[float] = []
    run, evaluate = loop.run, loop.evaluate_splits

    def started(session: Any, *arguments: Any) -> None:
        ban_end_of_text(session)
        run(session, *arguments)

    def timed(session: Any, phase: str, *rest: Any) -> None:
        session.world.barrier()
        began = time.perf_counter()
        evaluate(session, phase, *rest)
        session.world.barrier()
        seconds.append(time.perf_counter() - began)

    loop.run, loop.evaluate_splits = started, timed
    world = processes.start()
    folder = world.gather(tempfile.mkdtemp() if world.is_main else "")[0]
    recipe = recipe_of(setting, Path(folder))
    held_out = DataSource(path=str(setting.data_path), sampling=f"first:{rest['questions']}")
    recipe = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"eval": {"held_out": held_out}}),
            "eval": recipe.eval.model_copy(update={"max_new_tokens": setting.answer_tokens}),
        }
    )
    loop.train(recipe)
    if world.is_main:
        lines = read_metrics(Path(folder))[setting.warmup :]
        steps = [
            {
                "step_s": line["time/step_s"],
                "rollout_s": line["time/rollout_s"],
                "update_s": line["time/update_s"],
                "collectives_share": line.get("time/collectives_share", 0.0),
                "loss": line["loss"],
            }
            for line in lines
        ]
        result = {"steps": steps, "evaluation_s": seconds[0], "evaluation": read_eval(Path(folder))["before"]}
        Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
    processes.stop()


if __name__ == "__main__":
    main()
