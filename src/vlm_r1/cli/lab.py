"""The command that runs the paper in miniature: lab."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import app, command
from vlm_r1.errors import StudyError


@command(app, "lab")
def lab(
    studies: Annotated[list[str] | None, typer.Argument(metavar="[STUDY...]", help="Default: all of them.")] = None,
    reduced: Annotated[
        bool, typer.Option("--reduced", help="Fewer arms, seeds and steps, from a shipped model.")
    ] = False,
    show: Annotated[bool, typer.Option("--list", help="List the studies with their questions; run nothing.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Show how far each run is; run nothing.")] = False,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Write results and pages of what is done; run nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; default: as many as the cores hold with their threads.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each run.")] = 1,
    folder: Annotated[Path, typer.Option("--studies", help="The folder of the studies.")] = Path("recipes/lab"),
    runs: Annotated[Path, typer.Option(help="Where run folders go.")] = Path("runs/lab"),
    check: Annotated[
        Path | None,
        typer.Option(help="Compare the quantities with the JSON files of this folder; exit code 2 where they differ."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the JSON files and pages go.")] = Path("docs/results/lab"),
) -> None:
    """Test the paper's findings in small: studies of recipes over seeds, called by rules set beforehand.

    What is done is skipped and what was interrupted continues; run the same command again. Results and verdicts go to
    docs/results/lab/.

    Example: vlm-r1 lab reward-hacking --reduced
    """
    from vlm_r1.lab.lab import Settings, differences, rewrite, run_study
    from vlm_r1.lab.lab import status as status_of
    from vlm_r1.lab.study import chosen_studies

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs as Ctrl-C does
    chosen = chosen_studies(studies or [], folder)
    settings = Settings(
        runs=runs, out=out, reduced=reduced, at_once=jobs or Settings.processes(threads), threads=threads
    )
    failed = []
    for name, study in chosen.items():
        if show:
            typer.echo(f"{name}: {study.question.strip()}")
        elif status:
            rows = status_of(name, study, settings)
            typer.echo(f"{name}: {sum(state == 'done' for _, state in rows)} of {len(rows)} runs are done")
            for job, state in rows:
                typer.echo(f"  {job}: {state}")
        else:
            try:
                found = rewrite(name, study, settings) if table_only else run_study(name, study, settings, typer.echo)
            except StudyError as error:
                failed.append(f"{name}: {error}")
                continue
            for claim in found["claims"]:
                typer.echo(f"{name}: {claim['claim']}: {claim['verdict']}")
            if check is not None:
                failed += [f"{name}: not the result of {check}: {text}" for text in differences(found, check)]
    if failed:
        raise StudyError("\n".join(failed))
