"""The report of one or several runs: a single HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlm_r1.errors import CheckpointError
from vlm_r1.report.curves import charts, curve, is_smoothed
from vlm_r1.report.findings import (
    Change,
    changes,
    explanation,
    headline,
    metric_name,
    number,
    percent,
    signed,
    split_name,
    unreadable,
)
from vlm_r1.report.gallery import shelves, step_cards
from vlm_r1.report.pairs import Pair, join, read_pairs
from vlm_r1.report.pictures import Album
from vlm_r1.report.table import TableRow, before_after_rows
from vlm_r1.runtime.runlog import (
    read_environment,
    read_eval,
    read_eval_samples,
    read_metrics,
    write_atomically,
)


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write `report.html` about one run, or about several runs of one recipe, and return its path.

    The page goes into the run folder, for several runs into the folder above the first one, or to `out`. Curves get
    a band over the runs; pictures and rollouts come from the first run. What a run does not have is named as missing.
    Raises `CheckpointError` for a folder that is not there, a broken file or a full disk.
    """
    runs = [Path(run_dir) for run_dir in run_dirs]
    for run in runs:
        if not run.is_dir():
            raise CheckpointError(f"{run}: no such run folder; give the folder that a training run wrote")
    if not runs:
        raise CheckpointError("no run folder given; give at least one")
    path = out or (runs[0] if len(runs) == 1 else runs[0].resolve().parent) / "report.html"
    write_atomically(path, render(runs).encode())
    return path


def render(runs: Sequence[Path]) -> str:
    """The page as text; text that a model or a data set wrote is escaped."""
    environment = Environment(
        loader=PackageLoader("vlm_r1.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    metrics = [read_metrics(run) for run in runs]
    evals = [read_eval(run) for run in runs]
    album = Album()
    pairs = _questions(runs[0], evals[0])
    found = changes(runs)
    curves = [(chart.title, chart.note, Markup(chart.svg)) for chart in charts(metrics, evals)]
    gallery = [(split_name(split), _kept(of), len(of), shelves(of, album)) for split, of in pairs.items()]
    steps = step_cards(runs[0], album)
    config = _text(runs[0] / "config.yaml")
    return environment.get_template("report.html.j2").render(
        title=", ".join(run.resolve().name for run in runs),
        summary=_summary(config, metrics, len(runs)),
        heads=[(change, explanation(change)) for change in headline(found)],
        findings=[*unreadable(pairs), *training_facts(metrics[0])],
        table=_table(evals, found),
        gallery=[entry for entry in gallery if entry[3]],
        curves=curves,
        smoothed=is_smoothed(metrics),
        steps=steps,
        config=config,
        versions=read_environment(runs[0]),
        missing=_missing(metrics, evals, bool(pairs), bool(steps), config),
        left_out=album.left_out,
        runs=[run.resolve().name for run in runs],
        number=number,
        split_name=split_name,
        metric_name=metric_name,
    )


def _questions(run: Path, evaluation: Mapping[str, Any]) -> dict[str, list[Pair]]:
    """Before and after joined; for a run that was evaluated under another name, that evaluation alone."""
    pairs = read_pairs(run)
    if not pairs and evaluation:
        pairs = join([], read_eval_samples(run, list(evaluation)[-1]))
    return pairs


def _kept(pairs: Sequence[Pair]) -> int:
    return sum(pair.image is not None for pair in pairs)


def _table(evals: Sequence[Mapping[str, Any]], found: Sequence[Change]) -> list[tuple[str, ...]]:
    """Cells of the table, with the interval before the number of questions; of several runs, the mean over them."""
    intervals = {(c.split, c.metric): (c.low, c.high) for c in found}
    if len(evals) == 1:
        rows = before_after_rows(evals[0])
    else:
        rows = [TableRow(split=c.split, metric=c.metric, n=c.n, before=c.before, after=c.after) for c in found]
    cells = []
    for row in rows:
        low, high = intervals.get((row.split, row.metric), (None, None))
        split, metric, n, *values = row.cells
        cells.append(
            (split, metric, *values, "" if low is None or high is None else f"{signed(low)} to {signed(high)}", n)
        )
    return cells


def _summary(config: str | None, metrics: Sequence[Sequence[Mapping[str, Any]]], n_runs: int) -> str:
    """One line under the title: method, model, steps, seed."""
    try:
        recipe = yaml.safe_load(config or "") or {}
    except yaml.YAMLError:
        recipe = {}
    recipe = recipe if isinstance(recipe, dict) else {}
    method = {"grpo": "GRPO", "sft": "Supervised fine-tuning"}.get(recipe.get("method", ""), "A run")
    facts = [f"{method} of {recipe['model']['path']}" if recipe.get("model", {}).get("path") else method]
    steps = max((row["step"] for run in metrics for row in run), default=0)
    facts += [f"{steps} steps"] if steps else []
    seed = recipe.get("run", {}).get("seed")
    facts += [f"{n_runs} runs"] if n_runs > 1 else [f"seed {seed}"] if seed is not None else []
    return ", ".join(facts)


def training_facts(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about one run's training: reward at both ends, groups without a signal, time by phase."""
    said = []
    reward = [value for _, value in curve(metrics, "reward")]
    if len(reward) >= 2:
        part = max(1, len(reward) // 10)
        first, last = sum(reward[:part]) / part, sum(reward[-part:]) / part
        span = "step" if part == 1 else f"{part} steps"
        said.append(f"Training reward: {number(first)} over the first {span}, {number(last)} over the last {span}.")
    flat = [value for _, value in curve(metrics, "frac_reward_zero_std")]
    if flat:
        said.append(
            f"Groups whose answers all scored alike, so that they taught nothing: {percent(sum(flat) / len(flat))}."
        )
    total = sum(value for _, value in curve(metrics, "time/step_s"))
    if total > 0:
        phases = {name: sum(v for _, v in curve(metrics, f"time/{name}_s")) for name in ("rollout", "reward", "update")}
        shares = ", ".join(f"{name} {percent(value / total)}" for name, value in phases.items() if value > 0)
        said.append(f"Time in training steps: {duration(total)}{f' ({shares})' if shares else ''}.")
    return said


def duration(seconds: float) -> str:
    """Seconds as people say them: "45 s", "12 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _missing(
    metrics: Sequence[Any], evals: Sequence[Mapping[str, Any]], rows: bool, rollouts: bool, config: str | None
) -> list[str]:
    """What the page cannot show, and why."""
    told = []
    if not any(evals):
        told.append("No evaluation: the run has no eval.json, so there is no before and after.")
    elif not all("before" in e and "after" in e for e in evals):
        told.append("No before and after: the evaluation of one side is missing.")
    if any(evals) and not rows:
        told.append("No held-out pictures: the run kept no rows per question.")
    if not all(metrics):
        told.append("No curves for at least one run: its metrics.jsonl is missing or empty.")
    if not rollouts:
        told.append("No rollouts: the run kept none (supervised runs have none; see run.log_rollouts_every).")
    if config is None:
        told.append("No configuration: the run folder has no config.yaml.")
    return told


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
