"""`vlm-r1 demo`: a few minutes of GRPO on the shipped tiny model, from before to after."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config


def demo_recipe(out: Path, seed: int, steps: int | None) -> Recipe:
    """The demo's recipe (`assets/demo.yaml`) for a run folder, a seed and a number of steps."""
    overrides = [f"run.dir={out}", f"run.seed={seed}"] + ([f"run.steps={steps}"] if steps else [])
    with resources.as_file(resources.files("vlm_r1") / "assets" / "demo.yaml") as path:
        return load_config(path, overrides)


def run_demo(out: Path, seed: int = 0, steps: int | None = None) -> Path:
    """Train, then show the held-out questions before and after and where the report is. Returns the run folder."""
    from rich.console import Console

    from vlm_r1.report.html import write_report
    from vlm_r1.report.model_card import write_card
    from vlm_r1.report.table import before_after_table
    from vlm_r1.rl.loop import train
    from vlm_r1.runtime.runlog import read_eval

    console = Console()
    recipe = demo_recipe(out, seed, steps)
    console.print(
        f"GRPO on the shipped tiny model: {recipe.run.steps} steps of {recipe.rl.prompts_per_step} questions with "
        f'{recipe.rl.group_size} answers each. It is trained on questions like "the red circle" alone; relations, '
        "superlatives, odd-one-out and counting are held out."
    )
    run_dir = train(recipe)
    console.print(before_after_table(read_eval(run_dir)))
    write_card(run_dir)
    console.print(f"run folder: {run_dir}\nreport:     {write_report([run_dir])}")
    return run_dir
