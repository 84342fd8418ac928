"""The report of one or several runs: a single HTML file that needs nothing else, not even a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vlm_r1.config_file import parse_yaml
from vlm_r1.errors import CheckpointError, ConfigError
from vlm_r1.eval.label_noise import noise_notes
from vlm_r1.report.curves import MAX_POINTS, curve, is_smoothed, per_row
from vlm_r1.report.findings import (
    Change,
    changes,
    explanation,
    headline,
    interval,
    metric_name,
    number,
    percent,
    split_name,
    tally,
    unreadable,
)
from vlm_r1.report.gallery import MAX_SPLITS, each_of, shelves, step_cards
from vlm_r1.report.held_out import HeldOutImages
from vlm_r1.report.images import Album
from vlm_r1.report.pairs import Pair, join, read_pairs, read_phase
from vlm_r1.report.plots import SIZE, charts
from vlm_r1.report.table import TableRow, before_after_rows
from vlm_r1.report.warnings import concerns
from vlm_r1.runtime.runlog import eval_path, write_atomically
from vlm_r1.runtime.shown import Tell, shown_evaluation, shown_json, shown_metrics


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write `report.html` about one run, or about several runs of one recipe, and return its path.

    The page goes into the run folder, for several runs into the folder above the first one, or to `out`. Curves get
    a band over the runs; images and rollouts come from the first run. What a run does not have is named as missing,
    and what is odd in its files is named and left out. Raises `CheckpointError` for a folder that is not there, or a
    full disk.
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
    faults: list[str] = []
    tell = faults.append
    metrics = [shown_metrics(run, tell) for run in runs]
    evals = [shown_evaluation(run / "eval.json", tell) for run in runs]
    album = Album()
    pairs = _questions(runs[0], evals[0], tell)
    found = changes(runs, tell)
    heads = headline(found)
    shown = list(pairs.items())[:MAX_SPLITS]
    find = HeldOutImages(eval_path(runs[0], phase) for phase in reversed(evals[0])).find
    gallery = [(split_name(split), len(of), shelves(of, album, find, each_of(len(shown)))) for split, of in shown]
    steps = step_cards(runs[0], album, tell)
    config, drawn = _text(runs[0] / "config.yaml"), charts(metrics, evals)
    recipes = [parsed_recipe(_text(run / "config.yaml"), f"{run / 'config.yaml'}", tell) for run in runs]
    versions = shown_json(runs[0] / "environment.json", tell)
    names = [run.resolve().name for run in runs]
    return environment.get_template("report.html.j2").render(
        title=", ".join(names),
        summary=_summary(recipes[0], metrics),
        heads=[(change, explanation(change)) for change in heads],
        lead=tally(heads),
        findings=[
            *unreadable(pairs),
            *training_facts(metrics[0]),
            *noise_notes(s for e in evals for p in e.values() for s in p),
        ],
        warnings=_warnings(names, metrics, recipes),
        calm=any(curve(run, "reward") for run in metrics),
        table=_table(evals, found),
        gallery=[entry for entry in gallery if entry[2]],
        unshown=len(pairs) - len(shown),
        curves=[chart for chart in drawn if not chart.constant],
        constants=[chart for chart in drawn if chart.constant],
        per_row=per_row,
        size=SIZE,
        smoothed=-(-len(metrics[0]) // MAX_POINTS) if is_smoothed(metrics) else 0,
        steps=steps,
        config=config,
        versions=versions,
        missing=[
            *dict.fromkeys(faults),  # a file may be read for several things
            *_missing(names, metrics, evals, recipes[0], (bool(pairs), bool(steps), config is not None)),
        ],
        left_out=album.left_out,
        runs=names,
        number=number,
        split_name=split_name,
        metric_name=metric_name,
    )


def _questions(run: Path, evaluation: Mapping[str, Any], tell: Tell) -> dict[str, list[Pair]]:
    """Before and after joined; for a run that was evaluated under another name, that evaluation alone."""
    pairs = read_pairs(run, tell)
    if not pairs and evaluation:
        pairs = join([], read_phase(run, list(evaluation)[-1], tell))
    return pairs


def _table(evals: Sequence[Mapping[str, Any]], found: Sequence[Change]) -> dict[str, Any]:
    """Heads of the columns that hold anything, and the rows under the name of their split.

    Of several runs the values are means over them.
    """
    intervals = {
        (c.split, c.metric): interval(c.low, c.high) for c in found if c.low is not None and c.high is not None
    }
    if len(evals) == 1:
        rows = before_after_rows(evals[0])
    else:
        rows = [TableRow(split=c.split, metric=c.metric, n=c.n, before=c.before, after=c.after) for c in found]
    phases = list(evals[0]) if len(evals) == 1 else []
    alone = phases[-1] if phases and not {"before", "after"} & set(phases) else "after"
    heads = ("before", alone, "difference", "95 % interval")
    cells = [(*row.cells[3:], intervals.get((row.split, row.metric), "")) for row in rows]
    kept = [place for place in range(len(heads)) if any(line[place] for line in cells)]
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row, line in zip(rows, cells, strict=True):
        name = split_name(row.split) + (f", {row.n} questions" if row.n is not None else "")
        groups.setdefault(name, []).append((metric_name(row.metric), *(line[place] for place in kept)))
    return {"heads": [heads[place] for place in kept], "groups": groups, "intervals": bool(intervals)}


def parsed_recipe(text: str | None, name: str, tell: Tell) -> dict[str, Any]:
    """What a run's `config.yaml`, the file `name`, says, unchecked; empty where there is none, or it cannot be read."""
    try:
        recipe = parse_yaml(text or "", name)
    except ConfigError as error:
        tell(str(error))
        recipe = {}
    return recipe if isinstance(recipe, dict) else {}


def _setting(recipe: Mapping[str, Any], section: str, name: str) -> Any:
    of = recipe.get(section)
    return of.get(name) if isinstance(of, dict) else None


def _summary(recipe: Mapping[str, Any], metrics: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """One line under the title: method, model, steps, seed."""
    method = {"grpo": "GRPO", "sft": "Supervised fine-tuning"}.get(str(recipe.get("method", "")), "A run")
    model = _setting(recipe, "model", "path")
    if _setting(recipe, "model", "init") == "scratch":
        kind = _setting(recipe, "model", "scratch")
        model = f"a {kind['model_type'] if isinstance(kind, dict) and 'model_type' in kind else 'model'} from scratch"
    facts = [f"{method} of {model}" if model else method]
    steps = max((row["step"] for run in metrics for row in run), default=0)
    facts += [f"{steps} step{'s' * (steps != 1)}"] if steps else []
    seed = _setting(recipe, "run", "seed")
    facts += [f"{len(metrics)} runs"] if len(metrics) > 1 else [f"seed {seed}"] if seed is not None else []
    return ", ".join(facts)


def _warnings(
    names: Sequence[str], metrics: Sequence[Sequence[Mapping[str, Any]]], recipes: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What the diagnostics warn of, of several runs with the run's name."""
    said = []
    for name, rows, recipe in zip(names, metrics, recipes, strict=True):
        planned = _setting(recipe, "run", "steps")
        found = concerns(rows, planned if isinstance(planned, int) else None)
        said += [f"{name}: {text}" if len(names) > 1 else text for text in found]
    return said


def training_facts(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about one run's training: reward, else loss, at both ends; groups without a signal; time by phase."""
    said = []
    name = "reward" if curve(metrics, "reward") else "loss"
    values = [value for _, value in curve(metrics, name)]
    if len(values) >= 2:
        part = max(1, len(values) // 10)
        first, last = sum(values[:part]) / part, sum(values[-part:]) / part
        span = "step" if part == 1 else f"{part} steps"
        said.append(f"Training {name}: {number(first)} over the first {span}, {number(last)} over the last {span}.")
    flat = [value for _, value in curve(metrics, "frac_reward_zero_std")]
    if flat:
        said.append(
            f"Groups whose answers all scored alike, so that they taught nothing: {percent(sum(flat) / len(flat))}."
        )
    cached = [value for _, value in curve(metrics, "vision_cache/hit_rate")]
    if cached:
        said.append(f"Image features that came from the cache: {percent(sum(cached) / len(cached))}.")
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
    names: Sequence[str],
    metrics: Sequence[Any],
    evals: Sequence[Mapping[str, Any]],
    recipe: Mapping[str, Any],
    has: tuple[bool, bool, bool],
) -> list[str]:
    """What the page cannot show, and why; `has` tells of rows per question, rollouts and a configuration."""
    rows, rollouts, config = has
    supervised = recipe.get("method") == "sft"
    told = []
    lacking = [name for name, e in zip(names, evals, strict=True) if "before" not in e or "after" not in e]
    if supervised and not any(evals):
        told.append("No evaluation and no rollouts: supervised runs have none. Measure the model with vlm-r1 eval.")
    elif not any(evals):
        told.append("No evaluation: the run has no eval.json, so there is no before and after.")
    elif lacking:
        of = f" of {', '.join(lacking)}" if len(names) > 1 else ""
        told.append(f"No before and after: the evaluation of one side{of} is missing.")
    if any(evals) and not rows:
        told.append("No held-out images: the run kept no rows per question.")
    if not all(metrics):
        told.append("No curves for at least one run: its metrics.jsonl is missing or empty.")
    if not rollouts and not supervised:
        told.append("No rollouts: the run kept none (see run.log_rollouts_every).")
    if not config:
        told.append("No configuration: the run folder has no config.yaml.")
    return told


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
