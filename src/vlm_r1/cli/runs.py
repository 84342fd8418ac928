"""The command that lists runs: runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import app, command


@command(app, "runs")
def runs(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="The folder that holds run folders, or one of them.")
    ] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List run folders with their outcome, the one written last first.

    A run is finished when its final model and last evaluation are there, running while its process is (on another
    machine: while its files are young), else stopped. The reward is the mean of the last 10 steps; held out is the
    accuracy before and after.

    Example: vlm-r1 runs runs/sweep --json
    """
    from vlm_r1.report.runs import as_json as plain
    from vlm_r1.report.runs import list_runs, problem_lines, runs_table

    found = list_runs(folder)
    if as_json:
        typer.echo(json.dumps(plain(found), indent=2))
        return
    if not found:
        typer.echo(f"no runs in {folder}")
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(runs_table(found))
    for line in problem_lines(found):
        typer.echo(f"broken: {line}")
