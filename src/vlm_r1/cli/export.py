"""The command that takes a model out of a run: export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlm_r1.cli.app import app, command


class Dtype(StrEnum):
    """Of merged weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@command(app, "export")
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ADAPTER", help="A run folder (its final model, else its last checkpoint) or a model folder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist yet.")],
    merge: Annotated[bool, typer.Option("--merge", help="Make an adapter part of its base model's weights.")] = False,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of merged weights; default: the base model's. bfloat16 rounds the adapter.")
    ] = None,
) -> None:
    """Take the model of a run out of its folder, for serving or for further training.

    A run with LoRA ends in an adapter; with --merge it becomes a plain model that every program loads.

    Example: vlm-r1 export runs/lora --merge --out models/mine
    """
    from vlm_r1.runtime.export import export as run

    source = run(source, out, merge=merge, dtype=dtype.value if dtype else None)
    typer.echo(f"{'merged' if merge else 'copied'} {source} to {out}")
