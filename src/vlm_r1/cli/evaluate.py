"""Commands that look at what a model does: eval, predict, compare, report, score."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vlm_r1.cli.app import (
    DryRun,
    Overrides,
    Processes,
    RecipeArgument,
    app,
    command,
    launched,
    load_recipe,
    parse_options,
    show_dry_run,
)
from vlm_r1.errors import ConfigError


@command(app, "eval")
def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Also write the metrics to this JSON file, and each answer to a .parquet file beside it."),
    ] = None,
    processes: Processes = 1,
    dry_run: DryRun = False,
) -> None:
    """Evaluate a model greedily on the recipe's held-out splits, spread over processes where there are several.

    Prints a table: one row a metric, one column a split, 95 % intervals in parentheses. See: vlm-r1 docs evaluation.

    Example: vlm-r1 eval my.yaml model.path=runs/x/final --out after.json
    """
    settings = load_recipe(recipe, overrides)
    if not settings.data.eval:
        raise ConfigError(f"{recipe}: data.eval is empty; name at least one held-out split to evaluate on")
    if dry_run:
        return show_dry_run(settings, trains=False)
    written = [] if out is None else ["--out", str(out)]
    if launched(["eval", str(recipe), *(overrides or []), *written], processes, 0):
        return
    from vlm_r1.distributed.processes import stop
    from vlm_r1.eval.run import evaluate_model

    metrics = evaluate_model(settings, out)
    stop()
    if metrics:
        _show_metrics(metrics)


@command(app, "predict")
def predict(
    model: Annotated[str, typer.Argument(help='A model folder, a hub id, or "tiny".')],
    image: Annotated[Path, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help='What to ask, as in "the red circle".')],
    out: Annotated[Path, typer.Option(help="Where the image with the answer's boxes goes.")] = Path("prediction.png"),
    task: Annotated[
        str, typer.Option(help="How the answer is read: rec (one box), ovd (all boxes), count, ...")
    ] = "rec",
    template: Annotated[
        str | None,
        typer.Option(
            help="plain, r1, reference, qwen_rec, r1_tools, r1_task or a string with {question}; default: the one the "
            "model was trained with, else r1."
        ),
    ] = None,
    engine: Annotated[
        Literal["native", "vllm"], typer.Option(help="What answers: the model itself, or a vLLM server.")
    ] = "native",
    server: Annotated[
        list[str] | None,
        typer.Option(help="With vllm: the address of a server that has this model; default: one is started."),
    ] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(help="A tool that it may call: zoom, crop, point, draw or path.py:Name; once for each."),
    ] = None,
) -> None:
    """Ask a model about one image: prints its thought and answer, draws the boxes.

    Example: vlm-r1 predict runs/x/final photo.jpg "the man with the red umbrella" --out answer.png
    """
    if server and engine != "vllm":
        raise ConfigError("--server: names a vLLM server; add --engine vllm")
    from vlm_r1.report.predict import predict as run

    run(model, image, question, out, task, template, engine=engine, servers=server or (), tools=tool or ())


@command(app, "report")
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_FOLDER...", help="A run folder, or those of several seeds.")
    ],
) -> None:
    """Write report.html of a run folder, or of several with a band over seeds.

    The page goes into the run folder; for several, into the folder above the first one.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # held-out data of the hub is read from this machine or not at all
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
        typer.Option(help="A name of vlm-r1 docs rewards, or path.py:function; may be given several times."),
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

    The mean of each reward goes to standard error. The keys of a row are in vlm-r1 docs rewards.

    Example: vlm-r1 score answers.jsonl --reward iou --reward format --out scores.jsonl
    """
    from vlm_r1.rewards.score_file import score_file

    options: dict[str, dict[str, Any]] = {}
    for key, value in parse_options(option).items():
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


def _show_metrics(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Split -> metric -> value as a table: one row a metric, one column a split, intervals behind their value."""
    from rich.console import Console
    from rich.table import Table

    from vlm_r1.eval.label_noise import noise_notes

    table = Table("", *metrics)
    for name in dict.fromkeys(name for of_split in metrics.values() for name in of_split):
        if not name.endswith(("/low", "/high")):
            table.add_row(name, *(_cell(of_split, name) for of_split in metrics.values()))
    Console().print(table)
    for note in noise_notes(metrics):
        Console().print(note, highlight=False)


def _cell(values: Mapping[str, Any], name: str) -> str:
    """A number, and behind it the 95 % interval where there is one."""
    value = values.get(name, "")
    if name == "n" or not isinstance(value, float):
        return str(int(value)) if isinstance(value, float) else str(value)
    low, high = values.get(f"{name}/low"), values.get(f"{name}/high")
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.3f} to {high:.3f})"
