"""The command that serves a page over run folders: view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import app, command


@command(app, "view")
def view(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders, finished or being written, or a folder of them."),
    ],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Look at runs in the browser, live: curves, answers with their boxes, one question over time, evaluations.

    Several runs are drawn over each other; of a folder all runs inside are opened, later ones too. The page is served
    to this computer alone (127.0.0.1). Needs the extra "ui". See: vlm-r1 docs viewer.

    Example: vlm-r1 view runs
    """
    from vlm_r1.view.server import view as run

    run(runs, port, open_browser=open_browser)
