"""The command line. Each command imports what it runs inside itself: `--help` and a typo answer without torch."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vlm_r1.errors import ConfigError, UserError

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
    typer.Argument(metavar="RECIPE", help="A YAML recipe: examples are under recipes/, keys in docs/configuration.md."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's; values are YAML: rl.group_size=16"),
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder that picture paths start from; default: the data file's folder.")
]
Task = Annotated[
    str | None,
    typer.Option(
        help="The task of rows that do not name one (rec, reasoning, ovd, list, count, choice, yes_no, number, math, "
        "text, ocr, gui); default: what their solution looks like."
    ),
]

_STATE = {"debug": False}

CONTINUES = {"train", "sft", "demo"}
"""Commands that go on from their last checkpoint when they are started again."""


def main(arguments: list[str] | None = None) -> None:
    """The console script: `--debug` may stand anywhere among the arguments."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    given = sys.argv[1:] if arguments is None else arguments
    rest = [argument for argument in given if argument != "--debug"]
    app(args=["--debug", *rest] if len(rest) < len(given) else rest)


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose user errors end as one message and exit code 2, and Ctrl-C as 130."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                run(*args, **kwargs)
            except UserError as error:
                typer.echo(traceback.format_exc() if _STATE["debug"] else f"error: {error}", err=True)
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                again = f" To continue from the last checkpoint: {shlex.join(['vlm-r1', *sys.argv[1:]])}"
                typer.echo(f"\nStopped.{again if name in CONTINUES else ''}", err=True)
                raise typer.Exit(130) from None

        return group.command(name)(guarded)

    return register


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


@command(app, "train")
def train(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train with reinforcement learning; the same command again continues a run.

    The held-out splits of data.eval are answered before and after; everything goes into the folder run.dir.

    Example: vlm-r1 train my.yaml rl.group_size=16 optim.lr=2e-6 run.dir=runs/second
    """
    settings = _load(recipe, overrides, method="grpo")
    from vlm_r1.rl.loop import train as run

    run(settings)
    _report(Path(settings.run.dir))


@command(app, "sft")
def sft(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Train on target answers (supervised); the same command again continues a run.

    The target of a row is its thought and its solution in the form that RL rewards; the recipe has method: sft.

    Example: vlm-r1 sft recipes/scenes/base.yaml run.steps=500 run.dir=runs/short
    """
    settings = _load(recipe, overrides, method="sft")
    from vlm_r1.sft.train import train as run

    run(settings)
    _report(Path(settings.run.dir))


@command(app, "eval")
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write the metrics to this JSON file, and each answer to a .parquet file beside it."),
    ] = None,
) -> None:
    """Evaluate a model greedily on the recipe's held-out splits.

    Prints a table: one row a metric, one column a split, 95 % intervals in parentheses. See docs/evaluation.md.

    Example: vlm-r1 eval my.yaml model.path=runs/x/final --out after.json
    """
    settings = _load(recipe, overrides)
    if not settings.data.eval:
        raise ConfigError(f"{recipe}: data.eval is empty; name at least one held-out split to evaluate on")
    from vlm_r1.eval.run import evaluate_model

    _show_metrics(evaluate_model(settings, out))


@command(app, "predict")
def predict(
    model: Annotated[str, typer.Argument(help='A model folder, a hub id, or "tiny".')],
    image: Annotated[Path, typer.Argument(help="A picture file.")],
    question: Annotated[str, typer.Argument(help='What to ask, as in "the red circle".')],
    out: Annotated[Path, typer.Option(help="Where the picture with the answer's boxes goes.")] = Path("prediction.png"),
    task: Annotated[
        str, typer.Option(help="How the answer is read: rec (one box), ovd (all boxes), count, ...")
    ] = "rec",
    template: Annotated[
        str | None,
        typer.Option(
            help="plain, r1, reference, qwen_rec, r1_task or a text with {question}; default: the one the model was "
            "trained with, else r1."
        ),
    ] = None,
) -> None:
    """Ask a model about one picture: prints its thought and answer, draws the boxes.

    Example: vlm-r1 predict runs/x/final photo.jpg "the man with the red umbrella" --out answer.png
    """
    from vlm_r1.report.predict import predict as run

    run(model, image, question, out, task, template)


@command(app, "demo")
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the data order and of sampling.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: the demo recipe's.")] = None,
) -> None:
    """Train the tiny model that comes with the package for a few minutes, and show before and after.

    It is trained on questions like "the red circle" in generated scenes; relations, superlatives, odd-one-out and
    counting are held out. Nothing is downloaded.
    """
    from vlm_r1.demo import run_demo

    run_demo(out, seed, steps)


@command(app, "report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_FOLDER...", help="A run folder, or those of several seeds.")
    ],
) -> None:
    """Write report.html of a run folder, or of several with a band over seeds.

    The page goes into the run folder; for several, into the folder above the first one.
    """
    from vlm_r1.report.html import write_report

    typer.echo(f"report: {write_report(runs)}")


@command(app, "compare")
def compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(
            metavar="EVALUATION...",
            help="Files of eval --out, or run folders (runs/x, or one of its evaluations: runs/x:after).",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Also write the table to this .md, .json or .png file.")] = None,
) -> None:
    """Compare evaluations of several models: one table with intervals and differences from the first.

    Differences are paired over the same questions, so their intervals are narrow; a sure one is bold.

    Example: vlm-r1 compare base.json runs/x:after --out table.md
    """
    from vlm_r1.report.compare import compare as run

    typer.echo(run(evaluations, out))


@command(app, "score")
def score(
    file: Annotated[
        Path, typer.Argument(help='JSONL; a row has "completion" (what a model wrote), "solution" and more.')
    ],
    reward: Annotated[
        list[str],
        typer.Option(help="A name of docs/rewards.md, or path.py:function; may be given several times."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where each row goes with its scores, as JSONL; default: standard output.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="REWARD.OPTION=VALUE",
            help="An option of a reward: iou_threshold.threshold=0.7; may be given several times.",
        ),
    ] = None,
) -> None:
    """Score answers from a file with rewards, without a model.

    The mean of each reward goes to standard error. The keys of a row are in docs/rewards.md.

    Example: vlm-r1 score answers.jsonl --reward iou --reward format --out scores.jsonl
    """
    from vlm_r1.rewards.score_file import score_file

    options: dict[str, dict[str, Any]] = {}
    for key, value in _options(option).items():
        name, dot, argument = key.rpartition(".")
        if not dot:
            raise ConfigError(
                f'--option {key}: names no reward; write REWARD.OPTION=VALUE, as in "iou_threshold.threshold=0.7"'
            )
        options.setdefault(name, {})[argument] = value
    summary = score_file(file, reward, out, options)
    for name, mean in summary.means.items():
        told = "no row can be scored" if mean is None else f"mean {mean:.4f}"
        typer.echo(f"{name}: {told} ({summary.scorable[name]} of {summary.rows} rows scored)", err=True)
    for kind, count in sorted(summary.counts.items()):
        typer.echo(f"{kind}: {count}", err=True)


@command(data_app, "check")
def data_check(
    file: Annotated[Path, typer.Argument(help="A .jsonl, .json or .parquet file.")],
    image_root: ImageRoot = None,
    task: Task = None,
) -> None:
    """Read every row and picture of a data file and list what is wrong with it.

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
    seed: Annotated[int, typer.Option(help="Another seed draws other rows.")] = 0,
) -> None:
    """Draw some rows of a data file with their questions and true boxes; rows with faults are left out."""
    from vlm_r1.data.show import show_file

    show_file(file, out, n, image_root, seed)


@command(data_app, "convert")
def data_convert(
    name: Annotated[
        str, typer.Argument(metavar="FORMAT", help="What the inputs are: refcoco, coco, lisa, ovdeval or d3.")
    ],
    inputs: Annotated[list[Path], typer.Argument(help="The annotation files, as published.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write; replaced when all rows are written.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="An option of the format, as docs/data.md lists them; may be given several times.",
        ),
    ] = None,
) -> None:
    """Convert published annotation files to this package's JSONL.

    Example: vlm-r1 data convert coco instances_val2017.json --out val.jsonl --option filter=pos_1
    """
    from vlm_r1.data.convert import convert

    options = _options(option)
    if taken := {"name", "inputs", "out"} & set(options):
        raise ConfigError(f"--option {min(taken)}: is no option; it is given as an argument or as --out")
    convert(name, inputs, out, **options)


def _load(path: Path, overrides: list[str] | None, method: str | None = None) -> Any:
    """The recipe, refused where its method is another command's."""
    from vlm_r1.config_file import load_config

    recipe = load_config(path, overrides or [])
    if method is not None and recipe.method != method:
        other = "sft" if recipe.method == "sft" else "train"
        raise ConfigError(f"{path}: has method: {recipe.method}; use: vlm-r1 {other} {path}")
    return recipe


def _options(pairs: list[str] | None) -> dict[str, Any]:
    """`--option key=value` as a mapping; values are YAML."""
    from vlm_r1.config_file import parse_value

    options = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f'--option "{pair}": write KEY=VALUE')
        options[key] = parse_value(text)
    return options


def _show_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Split -> metric -> value as a table: one row a metric, one column a split, intervals behind their value."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *metrics)
    for name in dict.fromkeys(name for of_split in metrics.values() for name in of_split):
        if not name.endswith(("/low", "/high")):
            table.add_row(name, *(_cell(of_split, name) for of_split in metrics.values()))
    Console().print(table)


def _cell(values: Mapping[str, Any], name: str) -> str:
    """A number, and behind it the 95 % interval where there is one."""
    value = values.get(name, "")
    if name == "n" or not isinstance(value, float):
        return str(int(value)) if isinstance(value, float) else str(value)
    low, high = values.get(f"{name}/low"), values.get(f"{name}/high")
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.3f} to {high:.3f})"


def _report(run: Path) -> None:
    """Show and write the results of a finished run, in the first of several processes only."""
    if os.environ.get("RANK", "0") != "0":
        return
    from rich.console import Console

    from vlm_r1.report.html import write_report
    from vlm_r1.report.table import before_after_table
    from vlm_r1.runtime.runlog import read_eval

    if evaluation := read_eval(run):
        Console().print(before_after_table(evaluation))
    typer.echo(f"report: {write_report([run])}")
