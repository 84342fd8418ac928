"""Stands in for `vlm-r1 train|sft`: writes a run folder as a run does, from its arguments alone, in milliseconds.

Behaviour is told by files in the folder above the runs: `crash-ARM` (exit code 3 after a line on standard error),
`die-ARM` (killed half way, once), `empty-ARM` (exit code 0 without a final model).
"""

import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np

from vlm_r1.config_file import load_config, resolved_yaml
from vlm_r1.runtime.runlog import RunLog, read_metrics

N = 60
IMAGE = bytes.fromhex(os.environ.get("FAKE_IMAGE", ""))


def rows(arm: str, seed: int, gain: float) -> list[dict]:
    """Answers whose mean IoU is about 0.4 + gain; question effects are shared, noise is the run's."""
    shared = np.random.default_rng(1).normal(0, 0.1, N)
    own = np.random.default_rng([zlib.crc32(arm.encode()), seed, round(gain * 1000)]).normal(0, 0.01, N)
    ious = np.clip(0.4 + gain + shared + own, 0, 1)
    box = '[{"box": [0, 0, 10, 10], "label": "red circle"}]'
    return [
        {
            "split": "val",
            "source": "scenes/attribute",
            "sample_id": f"q{i}",
            "task": "rec",
            "question": "the red circle",
            "completion": "",
            "think": "red circle, top left",
            "answer": "",
            "failure": None,
            "iou": float(iou),
            "score": float(iou),
            "correct": bool(iou >= 0.5),
            "well_formed": True,
            "n_tokens": 20,
            "true_boxes": box,
            "pred_boxes": box,
            "image": IMAGE if i < 6 else None,
            "image_width": 96,
            "image_height": 96,
        }
        for i, iou in enumerate(ious)
    ]


def main() -> None:
    command, recipe_file, *overrides = sys.argv[1:]
    recipe = load_config(recipe_file, overrides)
    folder = Path(recipe.run.dir)
    arm, control = folder.parent.name, Path(os.environ["FAKE_CONTROL"])
    with open(control / "calls.txt", "a", encoding="utf-8") as file:
        file.write(
            f"{command} {folder.name if folder.parent.name == 'bases' else arm}/{folder.name} threads="
            f"{os.environ['OMP_NUM_THREADS']}\n"
        )
    if (control / f"crash-{arm}").exists():
        print("error: something broke", file=sys.stderr)
        raise SystemExit(3)
    log = RunLog(folder)
    log.environment()
    (folder / "config.yaml").write_text(resolved_yaml(recipe))
    done = read_metrics(folder)
    if not done:
        log.evaluation("before", {"val": {"n": N, "mean_iou": 0.4}}, rows("base", 0, 0.0))
    gain = float(os.environ.get(f"FAKE_GAIN_{arm.replace('-', '_').upper()}", "0.1")) + recipe.optim.lr
    for step in range(len(done) + 1, recipe.run.steps + 1):
        log.metrics(step, {"reward": 0.1 * step, "tokens/answer": 100, "time/step_s": 0.5})
        if step == 2 and (control / f"die-{arm}").exists():
            (control / f"die-{arm}").unlink()
            os.kill(os.getpid(), 9)
    if (control / f"empty-{arm}").exists():
        return
    (folder / "final").mkdir(exist_ok=True)
    found = rows(arm, recipe.run.seed, gain)
    log.evaluation("after", {"val": {"n": N, "mean_iou": float(np.mean([r["iou"] for r in found]))}}, found)
    (folder / "what.json").write_text(json.dumps(overrides))


if __name__ == "__main__":
    main()
