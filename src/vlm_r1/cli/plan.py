"""The command that says what a recipe takes: plan."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vlm_r1.cli.app import Overrides, RecipeArgument, app, command, load_recipe


@command(app, "plan")
def plan(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    card: Annotated[
        str | None, typer.Option(help="Also say what to change for this card: its memory in GiB, or a name (H100).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; sizes in bytes.")] = False,
) -> None:
    """Say how much memory a recipe takes on one GPU, by what it is for, without weights and without a GPU.

    The step of the recipe runs on shapes alone. Of the model only its configuration and processor are read.

    Example: vlm-r1 plan my.yaml rl.token_budget=8192 --card 24
    """
    settings = load_recipe(recipe, overrides)
    from vlm_r1.plan.advice import USABLE, advise, card_bytes
    from vlm_r1.plan.make import make_plan
    from vlm_r1.plan.prompts import find_questions
    from vlm_r1.plan.text import as_json as plain
    from vlm_r1.plan.text import change_text, fit_text, plan_text

    room = None if card is None else card_bytes(card)
    questions = find_questions(settings)
    made = make_plan(settings, questions)
    if as_json:
        changes = [] if room is None else list(advise(settings, made, questions, room))
        typer.echo(json.dumps(plain(made, room, changes), indent=2))
        return
    typer.echo(plan_text(made, settings))
    if room is None:
        return
    typer.echo(f"\n{fit_text(made, room)}")
    last = made.peak
    for change in advise(settings, made, questions, room):
        typer.echo(change_text(change))
        last = change.peak
    if last > room * USABLE:
        typer.echo("With all of it, it still does not fit: take a smaller model, or a larger card.")
