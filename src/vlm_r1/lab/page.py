"""The page of a study, docs/results/lab/STUDY.md, from its JSON alone: claims and verdicts, tables, charts, limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_r1.lab.document import Document
from vlm_r1.report.curves import Line, Points, to_png
from vlm_r1.runtime.runlog import write_atomically

X_NAMES = {
    "step": "step",
    "samples": "questions trained on",
    "tokens": "answer tokens",
    "seconds": "seconds of training",
}


def write_page(found: Document, file: Path) -> None:
    """Write the page and its charts (PNG files beside it)."""
    names = []
    for number, plot in enumerate(found["plots"], start=1):
        png = chart(found, plot)
        if png is not None:
            target = file.with_name(f"{file.stem}-{number}.png")
            write_atomically(target, png)
            names.append((target.name, plot["measure"]))
    write_atomically(file, page(found, names).encode())


def page(found: Document, charts: Sequence[tuple[str, str]] = ()) -> str:
    """The page as Markdown; `charts` are file names and the measures that they show."""
    parts = [f"# {found['title']}", found["question"]]
    if found["reduced"]:
        parts.append("This is the reduced grid: fewer arms, seeds and steps, from a shipped model.")
    parts += ["## Claims and verdicts", _claims(found), "## Quantities", _quantities(found), "## Arms", _arms(found)]
    parts += [f"![{measure}]({name})" for name, measure in charts]
    if found["images"]:
        parts.append("## Before and after")
    parts += [f"{arm}, its first seed:\n\n![{arm}]({name})" for arm, name in found["images"].items()]
    if found["tuned"]:
        parts += ["## Settings that were searched for", _tuned(found)]
    if found["limits"]:
        parts += ["## Limits", "\n".join(f"- {text}" for text in found["limits"])]
    parts += ["## How", _how(found)]
    return "\n\n".join(parts) + "\n"


def summary(documents: Sequence[Document]) -> str:
    """One table of all claims and their verdicts, for the index of studies."""
    rows = [
        [f"[{d['study']}]({_file(d)})", claim["claim"], claim["paper"], f"**{claim['verdict']}**"]
        for d in documents
        for claim in d["claims"]
    ]
    return _table(["study", "claim", "paper", "here"], rows)


def _file(found: Document) -> str:
    return f"{found['study']}{'.reduced' if found['reduced'] else ''}.md"


def _claims(found: Document) -> str:
    return "\n\n".join(
        f"**{claim['claim']}**\n\n- Paper: {claim['paper']}\n- Rule, set before the runs: shown if "
        f"{_rule(claim['shown'])}; refuted if {_rule(claim['refuted'])}; else not shown\n"
        + "".join(f"- Here: {text}\n" for text in claim["why"])
        + f"- Verdict: **{claim['verdict']}**"
        for claim in found["claims"]
    )


def _rule(when: Mapping[str, Any]) -> str:
    joined = when["all"] or when["any"]
    return (" and " if when["all"] else " or ").join(f"`{condition}`" for condition in joined)


def _quantities(found: Document) -> str:
    rows = []
    for name, q in found["quantities"].items():
        terms = " ".join(f"{weight:+g} {term}" for term, weight in q["terms"].items())
        what = q["means"] or found["measures"][q["measure"]]["means"]
        seeds = str(q["seeds"]) if "seeds" in q else ""
        rows.append([f"`{name}`", what, f"{q['measure']}: {terms} ({q['at'].replace('_', ' ')})", told(q), seeds])
    note = "In parentheses: 95 % intervals over seeds and held-out questions, paired where runs share them."
    return f"{_table(['quantity', 'what', 'of', 'value', 'seeds'], rows)}\n\n{note}"


def _arms(found: Document) -> str:
    names = list(found["measures"])
    rows = []
    for arm, values in found["arms"].items():
        cells = [f"{told(values[n]['before'])} → {told(values[n]['end'])}".removeprefix(" → ") for n in names]
        seeds = sum(run["arm"] == arm for run in found["runs"])
        rows.append([arm, str(seeds), *cells])
    what = [f"- `{name}`: {m['means']} ({m['metric']}" for name, m in found["measures"].items()]
    splits = [f"; {', '.join(m['splits'])})" if m["splits"] else ")" for m in found["measures"].values()]
    return "\n".join(a + b for a, b in zip(what, splits, strict=True)) + "\n\n" + _table(["arm", "seeds", *names], rows)


def _tuned(found: Document) -> str:
    rows = [
        [name, search["key"], f"{search['best']:g}", ", ".join(f"{v}: {m:.3f}" for v, m in search["means"].items())]
        for name, search in found["tuned"].items()
    ]
    return _table(["search", "setting", "best", "tried: mean on the split for tuning"], rows)


def _how(found: Document) -> str:
    commits = sorted({commit for run in found["runs"] for commit in run["commits"]})
    machines = sorted({", ".join(f"{k} {v}" for k, v in run["machine"].items()) for run in found["runs"]})
    return (
        f"`{found['command']}`; page of {found['date']}. {len(found['runs'])} runs, at commit {', '.join(commits)}. "
        f"Machine: {'; '.join(machines)}. Every run with its settings and curves is in the JSON file of the same name."
    )


def told(value: Mapping[str, Any] | None) -> str:
    """A value with its interval.

    >>> told({"value": 0.5, "low": 0.4, "high": 0.6})
    '0.500 (0.400 to 0.600)'
    """
    if not value or value.get("value") is None:
        return ""
    form = ".3f" if abs(value["value"]) < 100 else ".0f"
    text = f"{value['value']:{form}}"
    return text if value.get("low") is None else f"{text} ({value['low']:{form}} to {value['high']:{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def chart(found: Document, plot: Mapping[str, Any]) -> bytes | None:
    """A chart as PNG bytes; None where no run has the measure."""
    lines = []
    for arm in plot["arms"]:
        curves = [run["curve"] for run in found["runs"] if run["arm"] == arm]
        points = [_points(curve, curves, plot) for curve in curves]
        if any(points):
            lines.append(Line(label=arm, runs=[p for p in points if p]))
    if not lines:
        return None
    return to_png(found["measures"][plot["measure"]]["means"] or plot["measure"], lines, X_NAMES[plot["x"]])


def _points(curve: Sequence[Mapping[str, Any]], all_curves: Sequence[Any], plot: Mapping[str, Any]) -> Points:
    """A run's curve over the mean of x at each evaluation of the arm: seconds differ from run to run."""
    points = []
    for point in curve:
        value = point["measures"].get(plot["measure"])
        alike = [p[plot["x"]] for other in all_curves for p in other if p["phase"] == point["phase"]]
        if value is not None:
            points.append((round(sum(alike) / len(alike)), value))
    return points
