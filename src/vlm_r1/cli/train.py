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
    _run("train", "grpo", recipe, overrides or [], processes, restarts, dry_run)


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
    _run("sft", "sft", recipe, overrides or [], processes, restarts, dry_run)


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


def _run(
    name: str, method: str, recipe: Path, overrides: list[str], processes: int, restarts: int, dry_run: bool
) -> None:
    settings = load_recipe(recipe, overrides, method=method)
    if dry_run:
        return show_dry_run(settings)
    if launched([name, str(recipe), *overrides], processes, restarts):
        return
    from vlm_r1.runtime.inputs import read_inputs

    inputs = read_inputs(settings)
    if method == "sft":
        from vlm_r1.sft.train import train as run
    else:
        from vlm_r1.rl.loop import train as run
    run(_settled(settings), inputs)
    _report(Path(settings.run.dir))


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

    from vlm_r1.eval.label_noise import noise_notes
    from vlm_r1.report.html import write_report
    from vlm_r1.report.model_card import write_card
    from vlm_r1.report.table import before_after_table
    from vlm_r1.runtime.runlog import read_eval

    if evaluation := read_eval(run):
        Console().print(before_after_table(evaluation))
        for note in noise_notes(split for phase in evaluation.values() for split in phase):
            typer.echo(note)
    typer.echo(f"report: {write_report([run])}")
    if (run / "final").is_dir():
        typer.echo(f"model card: {write_card(run)}")
