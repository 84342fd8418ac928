"""The command that opens the playground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import app, command


@command(app, "play")
def play(
    model: Annotated[str, typer.Argument(help='A model folder, a hub id, or "tiny".')],
    second: Annotated[
        str | None, typer.Argument(metavar="[MODEL2]", help="Another model, asked the same beside it.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="A folder whose images can be picked; nothing outside it can.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(help="A tool that models may call: zoom, crop, point, draw or path.py:Name; once for each."),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Ask a model about images on a local web page: thinking as it is written, boxes, samples and their rewards.

    The page is served to this computer alone (127.0.0.1). Needs the extra "ui". See: vlm-r1 docs playground.

    Example: vlm-r1 play tiny runs/demo/final
    """
    from vlm_r1.play.serve import play as run

    run([model] if second is None else [model, second], image_root, port, tools=tool or (), open_browser=open_browser)
