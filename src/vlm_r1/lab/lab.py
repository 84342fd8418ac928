"""`vlm-r1 lab`: run the studies, then write their JSON, pages and the table of verdicts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_r1.errors import StudyError
from vlm_r1.lab.document import Document, document, read_document, write_document
from vlm_r1.lab.grid import Job, arm_jobs, base_jobs, tuning_jobs
from vlm_r1.lab.page import summary, write_page
from vlm_r1.lab.results import measured
from vlm_r1.lab.runner import VLM_R1, best_value, is_done, reused, run_jobs, state_of
from vlm_r1.lab.study import Study
from vlm_r1.report.image import before_after_png
from vlm_r1.runtime.runlog import write_atomically

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How studies are run: where runs and results go, the grid, and processes with their threads."""

    runs: Path = Path("runs/lab")
    out: Path = Path("docs/results/lab")
    reduced: bool = False
    at_once: int = 1
    threads: int = 1
    command: tuple[str, ...] = VLM_R1

    @staticmethod
    def processes(threads: int) -> int:
        """As many at once as the cores hold."""
        return max(1, (os.cpu_count() or 1) // threads)


def run_study(name: str, study: Study, settings: Settings, say: Say) -> Document:
    """Run what is not done of a study (bases, then searches, then arms) and write its results.

    Where runs fail, the results of the others are written before the `StudyError` is raised.
    """

    def run(jobs: Sequence[Job]) -> None:
        run_jobs(jobs, at_once=settings.at_once, threads=settings.threads, say=say, command=settings.command)

    say(f"{name}: {study.title}{' (reduced)' if settings.reduced else ''}")
    for stage in base_jobs(study, settings.runs, settings.reduced):
        run(stage)
    searches = tuning_jobs(name, study, settings.runs, settings.reduced)
    run([job for values in searches.values() for jobs in values.values() for job in jobs])
    tuned = found_best(study, searches)
    jobs = _arms(name, study, settings, _best(tuned))
    try:
        run(jobs)
    except StudyError:
        if any(is_done(job) for job in jobs):
            write_results(name, study, settings, jobs, tuned)
        raise
    return write_results(name, study, settings, jobs, tuned)


def _arms(name: str, study: Study, settings: Settings, tuned: Mapping[str, float]) -> list[Job]:
    """The runs that are compared; those that another study has made already are not made again."""
    return reused(arm_jobs(name, study, settings.runs, settings.reduced, tuned), settings.runs)


def found_best(study: Study, searches: Mapping[str, Mapping[float, list[Job]]]) -> dict[str, dict[str, Any]]:
    """Search -> its setting, the best value, and the mean of each value, once all its runs are done."""
    found = {}
    for search, values in searches.items():
        tuning = study.tune[search]
        if all(is_done(job) for jobs in values.values() for job in jobs):
            best, means = best_value(dict(values), tuning.split, tuning.metric)
            found[search] = {"key": tuning.key, "best": best, "means": {f"{v:g}": m for v, m in means.items()}}
    return found


def _best(tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {search: values["best"] for search, values in tuned.items()}


def write_results(
    name: str, study: Study, settings: Settings, jobs: Sequence[Job], tuned: Mapping[str, Mapping[str, Any]]
) -> Document:
    """The JSON and the page of a study from its finished runs, and the table of verdicts over all studies."""
    command = f"vlm-r1 lab {name}{' --reduced' if settings.reduced else ''}"
    runs = [measured(job) for job in jobs if is_done(job)]
    found = document(name, study, runs, command=command, reduced=settings.reduced, tuned=tuned)
    file = result_file(name, settings)
    for arm, split in study.images.items():
        shown = next((run for run in runs if run.job.arm == arm), None)
        if shown is not None:
            before_after_png(shown.job.folder, file.with_name(f"{file.stem}-{arm}.png"), split)
            found["images"][arm] = f"{file.stem}-{arm}.png"
    write_document(found, file)
    write_page(found, file.with_suffix(".md"))
    _write_index(settings.out)
    return found


def rewrite(name: str, study: Study, settings: Settings) -> Document:
    """`--table-only`: the results from the finished runs; without any, the page from the JSON that is there."""
    tuned = found_best(study, tuning_jobs(name, study, settings.runs, settings.reduced))
    missing = {arm.tune for arm in study.arms.values() if arm.tune} - tuned.keys()
    if settings.reduced or not missing:
        jobs = _arms(name, study, settings, _best(tuned))
        if any(is_done(job) for job in jobs):
            return write_results(name, study, settings, jobs, tuned)
    file = result_file(name, settings)
    found = read_document(file)
    write_page(found, file.with_suffix(".md"))
    _write_index(settings.out)
    return found


def differences(found: Document, folder: Path) -> list[str]:
    """Where the quantities of a study differ from those in a folder's JSON by more than both intervals allow.

    The half widths of the two intervals are combined as independent errors are. Raises `StudyError` where the folder
    has no results of this grid.
    """
    file = folder / f"{found['study']}{'.reduced' if found['reduced'] else ''}.json"
    if not file.is_file():
        raise StudyError(f"{file}: is missing, so there is nothing to compare with; leave out --check")
    old = read_document(file)
    said = []
    for name, new in found["quantities"].items():
        before = old["quantities"].get(name, {})
        if new.get("low") is None or before.get("low") is None:
            continue
        reach = math.hypot(*((q["high"] - q["low"]) / 2 for q in (new, before)))
        if abs(new["value"] - before["value"]) > reach + 1e-9:
            said.append(f"{name}: {new['value']:.4f} here, {before['value']:.4f} there, {reach:.4f} allowed")
    return said


def result_file(name: str, settings: Settings) -> Path:
    """docs/results/lab/STUDY.json, or STUDY.reduced.json."""
    return settings.out / f"{name}{'.reduced' if settings.reduced else ''}.json"


def _write_index(out: Path) -> None:
    """README.md: the verdicts of all studies; of one that has both grids, the full one's."""
    files = sorted(out.glob("*.json"))
    full = {file.stem for file in files if not file.stem.endswith(".reduced")}
    kept = [file for file in files if file.stem.removesuffix(".reduced") not in full or file.stem in full]
    text = summary([read_document(file) for file in kept])
    head = "# The paper in miniature\n\nMade by `vlm-r1 lab`: each claim, its rule set before the runs.\n\n"
    write_atomically(out / "README.md", f"{head}{text}\n".encode())


def status(name: str, study: Study, settings: Settings) -> list[tuple[str, str]]:
    """Every run of a study and how far it is; searches that are not over leave the arms' settings open."""
    searches = tuning_jobs(name, study, settings.runs, settings.reduced)
    searched = [job for values in searches.values() for jobs in values.values() for job in jobs]
    tuned = found_best(study, searches)
    bases = base_jobs(study, settings.runs, settings.reduced)
    known = [*(job for stage in bases for job in stage), *searched]
    rows = [(job.name, state_of(job)) for job in known]
    if settings.reduced or searches.keys() <= tuned.keys():
        jobs = _arms(name, study, settings, _best(tuned))
        return rows + [(job.name, state_of(job)) for job in jobs]
    guess = {search: study.tune[search].values[0] for search in searches}
    jobs = arm_jobs(name, study, settings.runs, settings.reduced, guess)
    return rows + [(job.name, "waits for the search of its settings") for job in jobs]
