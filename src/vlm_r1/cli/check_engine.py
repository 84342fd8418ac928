"""Commands about rollout engines: check-engine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import Overrides, Processes, RecipeArgument, app, command, launched, load_recipe


@command(app, "check-engine")
def check_engine(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of the recipe's data that are asked.")] = 32,
    answers: Annotated[int, typer.Option(min=1, help="Sampled answers to each.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
    processes: Processes = 1,
) -> None:
    """Compare a recipe's rollout engine with the trainer: greedy answers, log-probs, KL.

    Exits with 2 where the mean difference of log-probs is above rollout.max_mismatch, as training would.

    Example: vlm-r1 check-engine my.yaml rollout.engine=vllm
    """
    settings = load_recipe(recipe, overrides)
    given = ["--prompts", str(prompts), "--answers", str(answers), *(["--out", str(out)] if out else [])]
    if launched(["check-engine", str(recipe), *(overrides or []), *given], processes, 0):
        return
    from rich.console import Console
    from rich.table import Table

    from vlm_r1.distributed.processes import stop
    from vlm_r1.rl.check_engine import check_engine as run
    from vlm_r1.runtime.runlog import write_atomically

    found = run(settings, prompts, answers)
    main = os.environ.get("RANK", "0") == "0"
    stop()
    if main:
        table = Table("family", "tokens", "mean |difference|", "maximum", "KL a token", "greedy answers equal", "ties")
        table.add_row(
            found.family,
            str(found.tokens),
            f"{found.mean:.2e}",
            f"{found.maximum:.2e}",
            f"{found.kl:.2e}",
            f"{found.same} of {found.greedy}",
            str(found.ties),
        )
        Console().print(table)
        if out is not None:
            write_atomically(out, (json.dumps(found.as_dict(), indent=2) + "\n").encode())
    found.demand(settings.rollout.max_mismatch)
