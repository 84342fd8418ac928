"""What a study writes: docs/results/lab/STUDY.json with every run, quantity and verdict; pages are made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_r1.errors import StudyError
from vlm_r1.lab.intervals import Estimate
from vlm_r1.lab.results import LOG, Measured, take_quantity
from vlm_r1.lab.rules import judge
from vlm_r1.lab.runner import CHANGES, commit, read_mark
from vlm_r1.lab.study import BEFORE, Measure, Quantity, Study
from vlm_r1.runtime.runlog import read_environment, write_atomically

Document = dict[str, Any]


def document(
    name: str,
    study: Study,
    runs: Sequence[Measured],
    *,
    command: str,
    reduced: bool,
    tuned: Mapping[str, Mapping[str, Any]],
) -> Document:
    """Everything about a study as plain data.

    `tuned` holds each search: `{"rl": {"key": "optim.lr", "best": 1e-4, "means": {"0.0001": 0.5}}}`. A run's curve has
    what its evaluations measured; an arm's numbers are means over its seeds with their intervals.
    """
    estimates = {key: take_quantity(quantity, study, runs) for key, quantity in study.quantities.items()}
    known = {key: found for key, found in estimates.items() if found is not None}
    arms = list(dict.fromkeys(run.job.arm for run in runs))
    return {
        "study": name,
        "title": study.title,
        "question": study.question,
        "reduced": reduced,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "machine": read_environment(runs[0].job.folder) if runs else {},
        "tuned": dict(tuned),
        "measures": {key: measure.model_dump() for key, measure in study.measures.items()},
        "arms": {
            arm: {
                "recipe": study.arms[arm].recipe,
                **{
                    key: {end: _plain(_arm(arm, end, key, study, runs)) for end in ("before", "end")}
                    for key in study.measures
                },
            }
            for arm in arms
        },
        "quantities": {
            key: {**study.quantities[key].model_dump(), **(_plain(found) or {})} for key, found in estimates.items()
        },
        "claims": [{**claim.model_dump(), **asdict(judge(claim, known))} for claim in study.claims],
        "plots": [plot.model_dump() for plot in study.plots],
        "images": {},
        "limits": [*study.limits, *_edges(tuned), *_uncommitted(runs)],
        "runs": [_run(run, study) for run in runs],
    }


def _arm(arm: str, end: str, measure: str, study: Study, runs: Sequence[Measured]) -> Estimate | None:
    if end == "before" and study.measures[measure].metric.startswith(LOG):
        return None
    term = f"{arm}{BEFORE}" if end == "before" else arm
    mine = [run for run in runs if run.job.arm == arm]
    return take_quantity(Quantity(measure=measure, terms={term: 1.0}), study, mine)


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    low, high = found.interval() or (None, None)
    return {"value": found.value, "low": low, "high": high, "seeds": found.seeds}


def _edges(tuned: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Searches whose best value is the smallest or the largest that was tried: a better one may lie beyond."""
    said = []
    for name, search in tuned.items():
        tried = sorted(float(value) for value in search["means"])
        if search["best"] in (tried[0], tried[-1]):
            where = "smallest" if search["best"] == tried[0] else "largest"
            said.append(
                f"The best {search['key']} of the search {name} is the {where} that was tried ({search['best']:g}): "
                "a better one may lie beyond."
            )
    return said


def _uncommitted(runs: Sequence[Measured]) -> list[str]:
    """What to say where a rule may have been written after the runs that it judges."""
    changed = [run for run in runs if any(c.endswith(CHANGES) for c in read_mark(run.job.folder).get("commits", []))]
    if not changed:
        return []
    return [
        f"{len(changed)} of {len(runs)} runs were made with code or recipes that were not committed: that the rule "
        "came before them is not on record."
    ]


def _run(run: Measured, study: Study) -> dict[str, Any]:
    mark = read_mark(run.job.folder)
    return {
        "arm": run.job.arm,
        "seed": run.job.seed,
        "recipe": run.job.recipe,
        "overrides": list(run.job.overrides),
        "commits": mark.get("commits", []),
        "machine": read_environment(run.job.folder),
        "curve": [{**asdict(point), **_numbers(run, point, study.measures)} for point in run.points],
    }


def _numbers(run: Measured, point: Any, measures: Mapping[str, Measure]) -> dict[str, dict[str, float | None]]:
    last = point == run.points[-1]
    wanted = {key: m for key, m in measures.items() if last or not m.metric.startswith(LOG)}
    return {"measures": {key: run.plain(point, measure) for key, measure in wanted.items()}}


def write_document(found: Document, file: Path) -> None:
    """Write it as JSON."""
    write_atomically(file, (json.dumps(found, indent=1) + "\n").encode())


def read_document(file: Path) -> Document:
    """Raises `StudyError` where the file is missing or broken."""
    if not file.is_file():
        raise StudyError(f"{file}: is missing, and no run of this study is done; run it without --table-only")
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise StudyError(f"{file}: not JSON ({error}); make it again from the run folders") from None
