"""`vlm-r1 runs`: the run folders under a folder with their outcome, told from their files alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.markup import escape
from rich.table import Table

from vlm_r1.config import Recipe
from vlm_r1.config_file import load_config
from vlm_r1.errors import CheckpointError, UserError
from vlm_r1.eval.best import find_best, is_stale
from vlm_r1.report.findings import number, split_name
from vlm_r1.runtime.alive import is_alive
from vlm_r1.runtime.shown import Tell, shown_evaluation, shown_metrics

T = TypeVar("T")

WRITTEN = ("config.yaml", "environment.json", "metrics.jsonl", "eval.json")
"""The files whose age tells whether a run on another machine goes on."""
MARKS = (*WRITTEN, "final", "checkpoint-*", "rollouts")
"""A folder that holds one of these is meant to be a run folder."""

PATIENCE_S, PATIENCE_STEPS = 600.0, 5.0
"""A run on another machine that wrote nothing for so many seconds and so many of its steps has stopped."""

DEEPEST = 3
"""Levels below the given folder at which runs are looked for."""

LAST = 10
"""Steps whose rewards are averaged: the reward of one step is noisy."""

ACCURACY = ("acc@0.5", "accuracy", "nms_ap", "mAP", "mean_iou")
"""The metric that stands for a split: the first of these that its evaluation has."""

_COLORS = {"running": "cyan", "finished": "green", "stopped": "yellow", "broken": "red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The accuracy of one split before and after training; None where that evaluation is not there."""

    split: str
    metric: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the files of one run folder say; None where they do not say it.

    `state` is "running", "finished", "stopped" or "broken" (then `problems` says why). `reward` is the mean over the
    last `LAST` steps, `written` the time of the last change in seconds since 1970.

    Example: `Run(name="demo", folder="runs/demo", state="stopped", steps_done=40, steps=120)`.
    """

    name: str
    folder: str
    state: str
    method: str | None = None
    model: str | None = None
    steps_done: int = 0
    steps: int | None = None
    reward: float | None = None
    held_out: tuple[HeldOut, ...] = ()
    warnings: int = 0
    written: float | None = None
    problems: tuple[str, ...] = ()


def list_runs(folder: Path, now: float | None = None) -> list[Run]:
    """The runs in `folder`, the one written last first. Raises `CheckpointError` where there is no such folder.

    A folder beside them that holds no run is listed as broken, and so is a run whose files cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; give the folder that holds your run folders")
    now = time.time() if now is None else now
    found = [_read_run(path, path.relative_to(folder).as_posix(), now) for path in run_folders(folder)]
    return sorted(found, key=lambda run: (-(run.written or 0.0), run.name))


def is_run(folder: Path) -> bool:
    """Whether a folder is meant to be a run folder."""
    return any(any(folder.glob(mark)) for mark in MARKS)


def run_folders(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Run folders, and folders on the first level that lead to none."""
    if is_run(folder):
        yield folder
        return
    inside = sorted(path for path in folder.glob("[!.]*/") if path.is_dir())
    runs = [run for path in inside if depth < DEEPEST for run in run_folders(path, depth + 1)]
    yield from runs or ([folder] if depth == 1 else [])


def _read_run(folder: Path, name: str, now: float) -> Run:
    problems: list[str] = []

    def attempt(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (UserError, OSError) as error:
            problems.append(str(error))
            return otherwise

    recipe = attempt(lambda: _read_recipe(folder), None)
    metrics = shown_metrics(folder, problems.append)
    held_out = _held_out(folder, problems.append)
    done = metrics[-1]["step"] if metrics else 0
    written = attempt(lambda: last_change(folder), None)
    state = "broken"
    if recipe is not None and not problems:
        waiting = any(split.before is not None and split.after is None for split in held_out)
        stale = attempt(lambda: is_stale(find_best(folder, recipe, done), recipe), False)
        ended = stale or done >= recipe.run.steps
        finished = (folder / "final").is_dir() and ended and not waiting
        quiet = now - (written or 0.0)
        goes_on = not finished and attempt(lambda: is_running(folder, quiet, _longest(metrics)), None)
        state = "broken" if problems else "finished" if finished else "running" if goes_on else "stopped"
    return Run(
        name=name if name != "." else folder.resolve().name,
        folder=str(folder),
        state=state,
        method=recipe.method if recipe else None,
        model=_model(recipe) if recipe else None,
        steps_done=done,
        steps=recipe.run.steps if recipe else None,
        reward=_mean([row["reward"] for row in metrics[-LAST:] if _is_number(row.get("reward"))]),
        held_out=tuple(held_out),
        warnings=sum(len(found) for row in metrics if isinstance(found := row.get("warnings"), list)),
        written=written,
        problems=tuple(problems),
    )


def is_running(folder: Path, quiet_s: float, step_s: float) -> bool:
    """Whether a run that is not finished goes on: its process is there, or, on another machine, it wrote lately.

    `quiet_s` is how long it has written nothing, `step_s` what a step takes. Raises `CheckpointError`.
    """
    alive = is_alive(folder)
    return quiet_s <= max(PATIENCE_S, PATIENCE_STEPS * step_s) if alive is None else alive


def last_change(folder: Path) -> float | None:
    """When a run wrote last, in seconds since 1970; None where it has written nothing."""
    times = [path.stat().st_mtime for path in (folder / file for file in WRITTEN) if path.exists()]
    return max(times, default=None)


def _read_recipe(folder: Path) -> Recipe:
    file = folder / "config.yaml"
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing; a run writes it when it starts, so this is not a run folder")
    return load_config(file)


def _model(recipe: Recipe) -> str:
    kind = (recipe.model.scratch or {}).get("model_type", "")
    return recipe.model.path if recipe.model.init == "pretrained" else f"scratch {kind}".strip()


def _held_out(folder: Path, tell: Tell) -> list[HeldOut]:
    evaluation = shown_evaluation(folder / "eval.json", tell)
    before, after = evaluation.get("before", {}), evaluation.get("after", {})
    found = []
    for split in dict.fromkeys([*before, *after]):
        old, new = before.get(split, {}), after.get(split, {})
        metric = next((name for name in ACCURACY if _is_number(old.get(name)) or _is_number(new.get(name))), None)
        if metric is not None:
            values = [v if _is_number(v := phase.get(metric)) else None for phase in (old, new)]
            found.append(HeldOut(split=split, metric=metric, before=values[0], after=values[1]))
    return found


def _longest(metrics: Sequence[dict[str, Any]]) -> float:
    return max((row["time/step_s"] for row in metrics[-LAST:] if _is_number(row.get("time/step_s"))), default=0.0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The runs as plain data; `written` is a time with its offset from UTC."""
    rows = []
    for run in runs:
        written = None if run.written is None else datetime.fromtimestamp(run.written).astimezone()
        rows.append(asdict(run) | {"written": written and written.isoformat(timespec="seconds")})
    return rows


def runs_table(runs: Sequence[Run], now: float | None = None) -> Table:
    """The runs as a table for the terminal; what is wrong with the broken ones stands in `problem_lines`."""
    now = time.time() if now is None else now
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("run", overflow="fold", min_width=8)
    for head in ("state", "steps", "reward", "held out"):
        table.add_column(head, no_wrap=True, justify="right" if head in ("steps", "reward") else "left")
    table.add_column("model", overflow="fold")
    for run in runs:
        facts = [f"[{_COLORS[run.state]}]{run.state}[/]"]
        facts += [] if run.written is None else [f"[dim]{_ago(now - run.written)}[/]"]
        facts += [f"[yellow]{run.warnings} warning{'s' * (run.warnings > 1)}[/]"] if run.warnings else []
        table.add_row(
            escape(run.name),
            "\n".join(facts),
            f"{run.steps_done}/{run.steps or '?'}",
            "" if run.reward is None else number(run.reward),
            escape("\n".join(_told(item) for item in run.held_out)),
            escape(f"{run.method} {run.model}") if run.method else "",
        )
    return table


def problem_lines(runs: Sequence[Run]) -> list[str]:
    """What is wrong with the broken runs, one line a problem."""
    return [problem for run in runs for problem in run.problems]


def _told(item: HeldOut) -> str:
    old, new = ("" if value is None else number(value) for value in (item.before, item.after))
    metric = "" if item.metric in ACCURACY[:2] else f" {item.metric}"
    return f"{split_name(item.split)}{metric} {old} \N{RIGHTWARDS ARROW} {new}".rstrip()


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"
