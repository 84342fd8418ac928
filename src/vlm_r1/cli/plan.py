"""The command that says what a recipe takes: plan."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import Overrides, app, command, load_recipe
from vlm_r1.errors import ConfigError


@command(app, "plan")
def plan(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A YAML recipe.")] = None,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs, one process on each.")] = 1,
    gpu_memory: Annotated[
        str | None,
        typer.Option(help="Also say what to change for GPUs of this memory: in GiB, or a GPU's name (H100)."),
    ] = None,
    card: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes, times in seconds.")] = False,
    from_run: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead of memory, say how many of --gpus should generate: by the phase times of this run folder (of "
            "several: give it again) or YAML file; see: vlm-r1 docs scale-out."
        ),
    ] = None,
    staleness: Annotated[
        int | None, typer.Option(min=0, help="With --from-run: as rollout.staleness; default 1.")
    ] = None,
    sync_s: Annotated[
        float | None, typer.Option(min=0, help="With --from-run: seconds of a sync to servers; default: as measured.")
    ] = None,
) -> None:
    """Say how much memory a recipe takes on each GPU, by what it is for, without weights and without a GPU.

    The step of the recipe runs on shapes alone. Of the model only its configuration and processor are read.

    Example: vlm-r1 plan my.yaml rl.token_budget=8192 --gpus 8 --gpu-memory 80
    Example: vlm-r1 plan --from-run runs/mine --gpus 8
    """
    if from_run:
        if recipe is not None or gpu_memory is not None or card is not None:
            raise ConfigError("--from-run: plans times, not memory; give it without a recipe and without --gpu-memory")
        plan_generation(from_run, gpus, 1 if staleness is None else staleness, sync_s, as_json)
        return
    if staleness is not None or sync_s is not None:
        raise ConfigError("--staleness and --sync-s: belong to --from-run; add a run folder, or remove them")
    if recipe is None:
        raise ConfigError("vlm-r1 plan: give a recipe (its memory), or --from-run and a run folder (its times)")
    settings = load_recipe(recipe, overrides)
    from vlm_r1.plan.advice import advise, more_gpus
    from vlm_r1.plan.fit import settle
    from vlm_r1.plan.machine import Machine, gpu_bytes
    from vlm_r1.plan.prompts import find_questions
    from vlm_r1.plan.text import as_json as plain
    from vlm_r1.plan.text import change_text, fit_text, plan_text

    if card is not None:
        warnings.warn("--card is the old name of an option; write --gpu-memory", FutureWarning, stacklevel=1)
        gpu_memory = gpu_memory or card
    machine = Machine(processes=gpus, memory=None if gpu_memory is None else gpu_bytes(gpu_memory))
    questions = find_questions(settings)
    settings, made = settle(settings, questions, machine)
    if as_json:
        changes = [] if machine.memory is None else list(advise(settings, made, questions, machine))
        typer.echo(json.dumps(plain(made, machine, changes), indent=2))
        return
    typer.echo(plan_text(made, settings))
    if machine.memory is None:
        return
    typer.echo(f"\n{fit_text(made, machine)}")
    last = made.peak
    for change in advise(settings, made, questions, machine):
        typer.echo(change_text(change))
        last = change.peak
    wider = more_gpus(settings, made, questions, machine) if made.peak > machine.room else None
    if wider is not None:
        typer.echo(f"or as it is, on more GPUs:\n{change_text(wider)}")
    elif last > machine.room:
        typer.echo("With all of it, it still does not fit: take a smaller model, or GPUs with more memory.")


def plan_generation(paths: list[Path], gpus: int, staleness: int, sync_s: float | None, as_json: bool) -> None:
    """Print how GPUs are divided between training and generation."""
    from vlm_r1.plan.generation import divide
    from vlm_r1.plan.phase_times import read_phases
    from vlm_r1.plan.text import division_json, division_text

    if gpus < 2:
        raise ConfigError(f"--gpus {gpus}: only two GPUs or more can be divided; write --gpus 8")
    phases = read_phases(paths, sync_s)
    division = divide(phases, gpus, staleness)
    typer.echo(json.dumps(division_json(phases, division), indent=2) if as_json else division_text(phases, division))
