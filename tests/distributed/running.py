"""Real gloo processes under torchrun: run recipes on 1, 2 and 4 of them, and compare what they leave."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from vlm_r1.config import Recipe
from vlm_r1.config_file import resolved_yaml
from vlm_r1.runtime.runlog import read_metrics, read_rollouts, rollout_steps

SCRIPTS = Path(__file__).parent
LOCAL = ("time/", "perf/", "vision_cache/", "rollout/wait_s", "rollout/generate_s")
"""Metrics of a clock, or of caches that every process has for itself."""


def torchrun(processes: int, script: str, *arguments: str, timeout: float = 900, check: bool = True):
    """Run a script of this folder on so many processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*command, str(SCRIPTS / script), *arguments], capture_output=True, text=True, timeout=timeout
    )
    assert not check or done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[:3000]}\n...\n{done.stderr[-4000:]}"
    return done


def with_folder(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with another run folder."""
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": str(folder)})})


def run_all(
    recipes: Mapping[str, Recipe], processes: int, folder: Path, *options: str, **steps: int
) -> dict[str, Path]:
    """Run every recipe on so many processes, in one start; name -> run folder. `options` are `run_recipes.py`'s."""
    files, folders = [], {}
    for name, recipe in recipes.items():
        folders[name] = folder / name
        chosen = with_folder(recipe, folders[name])
        chosen = chosen.model_copy(update={"run": chosen.run.model_copy(update=steps)})
        file = folder / f"{name}-{processes}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(resolved_yaml(chosen))
        files.append(str(file))
    torchrun(processes, "run_recipes.py", *options, *files)
    return folders


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """The final weights of a run."""
    return load_file(next((run_dir / "final").glob("*model.safetensors")))


def assert_same_run(one: Path, other: Path, tolerance: float = 3e-5, ids: Sequence[str] = ("token_ids",)) -> None:
    """Equal answers token for token; metrics and final weights within the tolerance."""
    ours, theirs = read_metrics(one), read_metrics(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for a, b in zip(ours, theirs, strict=True):
        names = {name for name in a.keys() | b.keys() if not name.startswith(LOCAL)}
        for name in sorted(names):
            x, y = a.get(name), b.get(name)
            same = x == y if not isinstance(x, float) or y is None else abs(x - y) <= tolerance * max(1.0, abs(x))
            assert same, f"step {a['step']}: {name} is {x} and {y}"
    for step in rollout_steps(one):
        rows, others = read_rollouts(one, step), read_rollouts(other, step)
        keys = ("sample_id", "group", "token_ids", "advantage", "image")
        for key in keys:
            if key == "advantage":
                pairs = zip((r[key] for r in rows), (r[key] for r in others), strict=True)
                assert all(abs(x - y) < 1e-4 for x, y in pairs), f"step {step}: {key}"
            else:
                assert [r[key] for r in rows] == [r[key] for r in others], f"step {step}: {key}"
    mine, yours = weights(one), weights(other)
    assert mine.keys() == yours.keys()
    largest = max((float((mine[n].float() - yours[n].float()).abs().max()), n) for n in mine)
    assert largest[0] <= tolerance, largest
    evaluations = [run / "eval.json" for run in (one, other)]
    assert evaluations[0].is_file() == evaluations[1].is_file()
    if evaluations[0].is_file():
        assert evaluations[0].read_text() == evaluations[1].read_text()
