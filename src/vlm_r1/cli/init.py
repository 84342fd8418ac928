"""Commands on what comes with the package: init, docs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import app, command


@command(app, "init")
def init(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A recipe: demo, lora, rec, paper/ovd, ...")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder that it is written to.")] = Path("."),
) -> None:
    """Write a recipe that comes with the package, and rows in the format of its data; without NAME, list the recipes.

    Example: vlm-r1 init demo && vlm-r1 train demo.yaml
    """
    from vlm_r1.config_file import load_config
    from vlm_r1.shipped import recipes, write_recipe

    if name is None:
        for known, file in recipes().items():
            typer.echo(f"{known:<24} {file.read_text(encoding='utf-8').partition(chr(10))[0].removeprefix('# ')}")
        return
    written = write_recipe(name, out)
    for path in written:
        typer.echo(f"written: {path}")
    recipe = load_config(written[0])
    run = "eval" if not recipe.data.train else "sft" if recipe.method == "sft" else "train"
    typer.echo(f"check it: vlm-r1 {run} {written[0]} --dry-run\nrun it:   vlm-r1 {run} {written[0]}")


@command(app, "docs")
def docs(page: Annotated[str | None, typer.Argument(metavar="[PAGE]", help="Its name, as in rewards.")] = None) -> None:
    """Print a page of the documentation as Markdown; without PAGE, list them.

    Example: vlm-r1 docs configuration | less
    """
    from vlm_r1.shipped import page as text_of
    from vlm_r1.shipped import shipped

    if page is None:
        for file in sorted(shipped("docs").glob("*.md")):
            typer.echo(f"{file.stem:<20} {file.read_text(encoding='utf-8').partition(chr(10))[0].removeprefix('# ')}")
        return
    typer.echo(text_of(page.removesuffix(".md")))
