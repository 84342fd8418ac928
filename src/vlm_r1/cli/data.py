"""Commands about data files: data check, data show, data convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import ImageRoot, Task, command, data_app, parse_options
from vlm_r1.errors import ConfigError


@command(data_app, "check")
def data_check(
    file: Annotated[Path, typer.Argument(help="A .jsonl, .json or .parquet file.")],
    image_root: ImageRoot = None,
    task: Task = None,
) -> None:
    """Read every row and image of a data file and list what is wrong with it.

    Each fault is named with its line and what to do about it; the exit code is 2 where there is one.
    """
    from vlm_r1.data.check import check_file

    check_file(file, image_root, task)


@command(data_app, "show")
def data_show(
    file: Annotated[Path, typer.Argument(help="A .jsonl, .json or .parquet file.")],
    out: Annotated[Path, typer.Option(help="The page (.html) or sheet (.png) to write.")] = Path("samples.html"),
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Rows to draw.")] = 20,
    image_root: ImageRoot = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other rows.")] = 0,
) -> None:
    """Draw some rows of a data file with their questions and true boxes; rows with faults are left out."""
    from vlm_r1.data.show import show_file

    show_file(file, out, n, image_root, seed)


@command(data_app, "convert")
def data_convert(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="What the inputs are: refcoco, refcoco_reviewed, ref_l4, coco, lisa, ovdeval or d3.",
        ),
    ],
    inputs: Annotated[list[Path], typer.Argument(help="The annotation files, as published.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write; replaced when all rows are written.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="An option of the format, as vlm-r1 docs data lists them; may be given several times.",
        ),
    ] = None,
) -> None:
    """Convert published annotation files to this package's JSONL.

    Example: vlm-r1 data convert coco instances_val2017.json --out val.jsonl --option filter=pos_1
    """
    from vlm_r1.data.convert import convert

    options = parse_options(option)
    if taken := {"name", "inputs", "out"} & set(options):
        raise ConfigError(f"--option {min(taken)}: is not an option; it is given as an argument or as --out")
    convert(name, inputs, out, **options)
