"""One question over time: where it was asked, found in every evaluation and every rollout table of a run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from vlm_r1.errors import DataError, UserError
from vlm_r1.report.curves import Points, phase_step
from vlm_r1.report.held_out import HeldOutImages
from vlm_r1.runtime.runlog import EVAL_COLUMNS, ROLLOUT_COLUMNS
from vlm_r1.runtime.shown import shown_rows
from vlm_r1.view.cards import Row
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.groups import Group

Key = tuple[str, str]
"""A question: sample id and text."""

MAX_STEPS = 40
"""Training steps of one question that are shown, spread evenly from the first to the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The answers to a question at one time; `step` is None for an evaluation outside the training."""

    run: str
    step: int | None
    group: Group


class Index:
    """Which evaluations and which steps of a run asked a question. Tables are read once, steps in a thread.

    Example: `index = Index(run); index.read_on(); index.join(); index.steps(("train-3-0", "the red circle"))`.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._steps: dict[Key, list[int]] = {}
        self._read: set[int] = set()
        self._asked: dict[tuple[str, int], frozenset[Key]] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def read_on(self) -> None:
        """Start reading the rollout tables that are new, where that is not going on."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def join(self) -> None:
        """Wait until the rollout tables that were there are read."""
        if self._thread is not None:
            self._thread.join()

    @property
    def progress(self) -> tuple[int, int]:
        """Rollout tables read, and rollout tables there are."""
        return (len(self._read), len(self.run.steps()))

    def steps(self, key: Key) -> list[int]:
        """The steps that asked a question, as far as was read, ascending."""
        return sorted(self._steps.get(key, []))

    def evaluations(self) -> list[tuple[str, Path, frozenset[Key]]]:
        """(name, table, questions) of the evaluations that kept their questions. Raises `CheckpointError`."""
        tables = [(name, self.run.evaluation_table(name)) for name in self.run.evaluations()]
        return [(name, path, self._questions(path)) for name, path in tables if path.is_file()]

    def asked(self) -> Iterable[Key]:
        """Every question that is known: those of evaluations first, then those of training, the latest first."""
        yield from (key for _, _, keys in self.evaluations() for key in sorted(keys))
        yield from list(self._steps)

    def _questions(self, path: Path) -> frozenset[Key]:
        version = (str(path), path.stat().st_mtime_ns)
        if version not in self._asked:
            self._asked[version] = frozenset(map(key_of, self._rows(path, EVAL_COLUMNS)))
        return self._asked[version]

    def _rows(self, path: Path, schema: pa.Schema) -> Sequence[Row]:
        tell = self.run.tell(f"questions of {path.name}")
        try:
            return shown_rows(path, schema, tell, columns=("sample_id", "question"))
        except UserError as error:  # gone or broken
            tell(str(error))
            return []

    def _work(self) -> None:
        for step in reversed(self.run.steps()):
            if step in self._read:
                continue
            for key in {key_of(row): None for row in self._rows(self.run.rollout_table(step), ROLLOUT_COLUMNS)}:
                self._steps.setdefault(key, []).append(step)
            self._read.add(step)


def key_of(row: Row) -> Key:
    """Which question a row answers."""
    return (row.get("sample_id") or "", row.get("question") or "")


def search(indices: Sequence[Index], text: str, most: int = 50) -> list[Key]:
    """At most so many questions that hold a text in their words or their sample id, case aside."""
    wanted, found = text.casefold(), dict[Key, None]()
    for key in (key for index in indices for key in index.asked()):
        if wanted in key[1].casefold() or wanted in key[0].casefold():
            found[key] = None
            if len(found) == most:
                break
    return list(found)


def count(indices: Sequence[Index], key: Key) -> int:
    """How many evaluations and steps are known to have asked a question. Raises `CheckpointError`."""
    return sum(len(index.steps(key)) + sum(key in keys for _, _, keys in index.evaluations()) for index in indices)


def moments(indices: Sequence[Index], key: Key) -> list[Moment]:
    """One question in the order of training, with its image at every moment. Raises `CheckpointError`."""
    found: list[Moment] = []
    images: list[Callable[[], bytes]] = []
    for index in indices:
        run = index.run
        last = max((row["step"] for row in run.metrics()[-1:]), default=0)
        prefix = f"{run.name}: " if len(indices) > 1 else ""
        for name, path, keys in index.evaluations():
            if key in keys:
                rows = _answers(run, path, EVAL_COLUMNS, key)[:1]
                images.append(partial(run.images(name).find, rows))
                group = Group(name=f"{prefix}{name.replace('-', ' ')}", rows=rows)
                found.append(Moment(run=run.name, step=phase_step(name, last), group=group))
        for step in _spread(index.steps(key)):
            rows = _answers(run, run.rollout_table(step), ROLLOUT_COLUMNS, key)
            images += [partial(bytes, row["image"]) for row in rows if row.get("image") is not None]
            group = Group(name=f"{prefix}training, step {step}", rows=rows)
            found.append(Moment(run=run.name, step=step, group=group))
    found.sort(key=lambda moment: (moment.step is None, moment.step or 0))
    return [
        replace(
            moment, group=replace(moment.group, find=partial(_first, images or [partial(HeldOutImages(()).find, ())]))
        )
        for moment in found
    ]


def _first(images: Sequence[Callable[[], bytes]]) -> bytes:
    """The image from the first place that has it."""
    for find in images[:-1]:
        with suppress(DataError):
            return find()
    return images[-1]()


def scores(found: Sequence[Moment], run: str) -> Points:
    """The mean score of a run's answers to a question over its steps."""
    known = [(moment.step, moment.group.mean) for moment in found if moment.run == run]
    return [(step, mean) for step, mean in known if step is not None and mean is not None]


def _answers(run: RunFolder, path: Path, schema: pa.Schema, key: Key) -> tuple[Row, ...]:
    rows = shown_rows(path, schema, run.tell(f"{key[0]} of {path.name}"), sample_id=key[0] or None)
    found = tuple(row for row in rows if key_of(row) == key)
    first = found[0].get("group") if found else None
    return tuple(row for row in found if row.get("group") == first)


def _spread(steps: list[int]) -> list[int]:
    if len(steps) <= MAX_STEPS:
        return steps
    return [steps[round(place * (len(steps) - 1) / (MAX_STEPS - 1))] for place in range(MAX_STEPS)]
