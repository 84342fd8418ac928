"""The application, what every command shares, and how errors end. Commands are in the files beside this one."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vlm_r1.errors import ConfigError, Stopped, UserError

app = typer.Typer(
    name="vlm-r1",
    help="Reinforcement learning with checkable rewards for vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Check, look at and convert data files.", no_args_is_help=True)
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="A YAML recipe: vlm-r1 init writes one, vlm-r1 docs configuration lists its keys."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's; values are YAML: rl.group_size=16"),
]
Processes = Annotated[
    int, typer.Option(min=1, help="Run on so many processes of this machine, one a GPU; see: vlm-r1 docs scale-out.")
]
Restarts = Annotated[
    int, typer.Option(min=0, help="With --processes: starts from the last checkpoint after a process died.")
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder that image paths start from; default: the data file's folder.")
]
Task = Annotated[
    str | None,
    typer.Option(
        help="The task of rows that do not name one (rec, reasoning, ovd, list, count, choice, yes_no, number, math, "
        "text, ocr, when, gui); default: what their solution looks like."
    ),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check recipe, data and rewards, show a sample's prompt and what answers score; run nothing."
    ),
]

_STATE = {"debug": False}

CONTINUES = {"train", "sft", "demo", "lab"}
"""Commands that go on from their last checkpoint when they are started again."""


FIRST_SPEAKS_S = 10.0
"""Time that the first process has to say what is wrong, and to end; a busy machine takes seconds to end one."""


def main(arguments: list[str] | None = None) -> None:
    """The console script: `--debug` may stand anywhere among the arguments."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    given = sys.argv[1:] if arguments is None else arguments
    rest = [argument for argument in given if argument != "--debug"]
    app(args=["--debug", *rest] if len(rest) < len(given) else rest)


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose user errors end as one message and exit code 2, Ctrl-C as 130, and signals as `Stopped`
    says."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                run(*args, **kwargs)
            except UserError as error:
                if _speaks(error):
                    typer.echo(traceback.format_exc() if _STATE["debug"] else f"error: {error}", err=True)
                raise typer.Exit(2) from None
            except (KeyboardInterrupt, Stopped) as stop:
                again = f" To continue from the last checkpoint: {shlex.join(['vlm-r1', *sys.argv[1:]])}"
                if "RANK" not in os.environ:  # the others' launcher says it
                    typer.echo(f"\nStopped.{again if name in CONTINUES else ''}", err=True)
                raise typer.Exit(stop.code if isinstance(stop, Stopped) else 130) from None

        return group.command(name)(guarded)

    return register


def _speaks(error: UserError) -> bool:
    """Of several processes with the same error one message is enough: the others are ended while they wait."""
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(FIRST_SPEAKS_S)
    if rank and not error.together:
        typer.echo(f"rank {rank}: ", nl=False, err=True)
    return not (rank and error.together)


def launched(arguments: list[str], processes: int, restarts: int) -> bool:
    """Run the command on several processes where `--processes` asks for them; whether that was done."""
    if processes == 1:
        return False
    from vlm_r1.distributed.launch import launch

    launch(arguments, processes, restarts)
    return True


def _version(wanted: bool) -> None:
    if wanted:
        from vlm_r1 import __version__

        typer.echo(f"vlm-r1 {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""
    _STATE["debug"] = debug


def load_recipe(path: Path, overrides: list[str] | None, method: str | None = None) -> Any:
    """The recipe, refused where its method is another command's."""
    from vlm_r1.config_file import load_config

    recipe = load_config(path, overrides or [])
    if method is not None and recipe.method != method:
        other = "sft" if recipe.method == "sft" else "train"
        raise ConfigError(f"{path}: has method: {recipe.method}; use: vlm-r1 {other} {path}")
    return recipe


def show_dry_run(settings: Any, *, trains: bool = True) -> None:
    """What `--dry-run` does in the place of a run."""
    from vlm_r1.rl.dry_run import dry_run

    dry_run(settings, trains=trains)


def parse_options(pairs: list[str] | None) -> dict[str, Any]:
    """`--option key=value` as a mapping; values are YAML."""
    from vlm_r1.config_file import parse_value

    options = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f'--option "{pair}": write KEY=VALUE')
        options[key] = parse_value(text)
    return options
