"""Commands that train: train, sft, demo."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vlm_r1.cli.app import (
    DryRun,
    Overrides,
    Processes,
    RecipeArgument,
    Restarts,
    app,
    command,
    launched,
    load_recipe,
    show_dry_run,
)
from vlm_r1.errors import UserError


@command(app, "train")
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Processes = 1,
    restarts: Restarts = 3,
    dry_run: DryRun = False,
) -> None:
    """Train with reinforcement learning; the same command again continues a run.

    The held-out splits of data.eval are answered before and after; everything goes into the folder run.dir.

    Example: vlm-r1 train my.yaml rl.group_size=16 optim.lr=2e-6 run.dir=runs/second --processes 8
    """
    settings = load_recipe(recipe, overrides, method="grpo")
    if dry_run:
        return show_dry_run(settings)
    if launched(["train", str(recipe), *(overrides or [])], processes, restarts):
        return
    from vlm_r1.rl.loop import train as run
    from vlm_r1.runtime.inputs import read_inputs

    inputs = read_inputs(settings)
    run(_settled(settings), inputs)
    _report(Path(settings.run.dir))


@command(app, "sft")
def sft(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    processes: Processes = 1,
    restarts: Restarts = 3,
    dry_run: DryRun = False,
) -> None:
    """Train on target answers (supervised); the same command again continues a run.

    The target of a row is its thought and its solution in the form that RL rewards; the recipe has method: sft.

    Example: vlm-r1 sft base.yaml run.steps=500 run.dir=runs/short
    """
    settings = load_recipe(recipe, overrides, method="sft")
    if dry_run:
        return show_dry_run(settings)
    if launched(["sft", str(recipe), *(overrides or [])], processes, restarts):
        return
    from vlm_r1.runtime.inputs import read_inputs
    from vlm_r1.sft.train import train as run

    inputs = read_inputs(settings)
    run(_settled(settings), inputs)
    _report(Path(settings.run.dir))


@command(app, "demo")
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the data order and of sampling.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: the demo recipe's.")] = None,
) -> None:
    """Train the tiny model that comes with the package for a few minutes, and show before and after.

    It is trained on questions like "the red circle" in generated scenes; relations, superlatives, odd-one-out and
    counting are held out. Nothing is downloaded.
    """
    from vlm_r1.demo import run_demo

    run_demo(out, seed, steps)


def _settled(settings: Any) -> Any:
    """The recipe with `auto` settled for this machine's GPUs, refused where it cannot fit on them."""
    import torch

    if not torch.cuda.is_available():
        return settings
    from vlm_r1.distributed.processes import start
    from vlm_r1.plan.fit import resolve

    world = start()
    found: Any = None
    if world.is_main:  # a plan of a large model takes half a minute: one process makes it for all
        try:
            memory = torch.cuda.get_device_properties(world.device).total_memory
            found = resolve(settings, world.size, memory)
        except UserError as error:
            found = error
    found = world.gather(found)[0]
    if isinstance(found, UserError):
        raise found
    return found


def _report(run: Path) -> None:
    """Show and write the results of a finished run, in the first of several processes only."""
    from vlm_r1.distributed.processes import stop

    stop()
    if os.environ.get("RANK", "0") != "0":
        return
    from rich.console import Console

    from vlm_r1.report.html import write_report
    from vlm_r1.report.table import before_after_table
    from vlm_r1.runtime.runlog import read_eval

    if evaluation := read_eval(run):
        Console().print(before_after_table(evaluation))
    typer.echo(f"report: {write_report([run])}")
