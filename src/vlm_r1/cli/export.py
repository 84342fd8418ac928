"""The commands that take a model out of a run: export and push."""

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
    if merge and source.name == "final" and (source.parent / "config.yaml").is_file():
        from vlm_r1.report.model_card import write_card

        write_card(source.parent, out)
    typer.echo(f"{'merged' if merge else 'copied'} {source} to {out}")


@command(app, "push")
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN_OR_MODEL", help="A finished run, or a model folder.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; default: private.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="The hub's identifier; default: that of the base's card.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
) -> None:
    """Send the final model of a run, with its model card, to the Hugging Face hub.

    The repository is private unless --public is given. Log in first: hf auth login

    Example: vlm-r1 push runs/mine me/qwen-rec --dry-run
    """
    from vlm_r1.report.push import prepare
    from vlm_r1.report.push import push as send

    upload = prepare(source, repo, private=not public, licence=licence)
    if not dry_run:
        typer.echo(f"pushed {upload.folder} to {send(upload)} ({'public' if public else 'private'})")
        return
    for name, size in upload.sizes.items():
        typer.echo(f"{size:>14,} bytes  {name}")
    typer.echo(f"\n{upload.card}")
    typer.echo(f"dry run: nothing was sent to {repo} ({'public' if public else 'private'})")
