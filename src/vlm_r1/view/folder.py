"""One run folder read while it is being written: only what changed is read again, and nothing outside the folder."""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlm_r1.errors import CheckpointError
from vlm_r1.report.curves import phase_step
from vlm_r1.report.held_out import HeldOutImages
from vlm_r1.report.runs import MARKS, is_run, last_change
from vlm_r1.runtime.runlog import EVAL_COLUMNS, ROLLOUT_COLUMNS
from vlm_r1.runtime.shown import Tell, metrics_row, shown_evaluation, shown_rows, tell_faults
from vlm_r1.view.thin import Thinned

Row = dict[str, Any]
Metrics = Mapping[str, Mapping[str, Any]]

TABLES_KEPT = 6
"""Tables with their images that are held in memory, the least used one dropped first."""

_STEP = re.compile(r"step-(\d{1,18})\.parquet")


class RunFolder:
    """The files of one run.

    Example: `RunFolder(Path("runs/demo")).metrics()[-1]["reward"]`. Raises `CheckpointError` for what is not a run
    folder.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such run folder; give the folder that a training run wrote")
        if not is_run(path):
            raise CheckpointError(
                f"{path}: not a run folder, and there is none inside; it has none of {', '.join(MARKS)}"
            )
        self.path = path.resolve()
        self.name = self.path.name
        self._log = _MetricsLog(self)
        self._told: dict[str, list[str]] = {}
        self._tables: OrderedDict[tuple[str, int, int], list[Row]] = OrderedDict()
        self._images: dict[str, tuple[tuple[str, int], HeldOutImages]] = {}
        self._lock = threading.Lock()
        self._steps: tuple[int, list[int]] = (-1, [])

    def metrics(self) -> list[Row]:
        """The lines of `metrics.jsonl` that are whole; the same list grows from call to call."""
        return self._log.read()

    def thinned(self) -> list[dict[str, float]]:
        """The metrics as curves need them: at most `thin.MAX_ROWS` rows of means."""
        return self._log.thinned()

    def tell(self, what: str) -> Tell:
        """For a new reading of `what`: where its faults go, in the place of those told before."""
        self._told.pop(what, None)
        return lambda fault: self._told.setdefault(what, []).append(fault)

    @property
    def problems(self) -> list[str]:
        """What is odd in the files that were read, in words."""
        tell_faults(self.path / "metrics.jsonl", self._log.faults, self.tell("metrics.jsonl"))
        return list(dict.fromkeys(text for of in list(self._told.values()) for text in of))

    def steps(self) -> list[int]:
        """The steps whose rollouts were kept, ascending."""
        folder = self.inside("rollouts")
        if not folder.is_dir():
            return []
        changed = folder.stat().st_mtime_ns
        if self._steps[0] != changed:
            names = (_STEP.fullmatch(entry.name) for entry in os.scandir(folder))
            self._steps = (changed, sorted({int(match[1]) for match in names if match}))
        return self._steps[1]

    def rollouts(self, step: int) -> list[Row]:
        """The answers of one step (`ROLLOUT_COLUMNS`). Raises `CheckpointError`."""
        path = self.rollout_table(step)
        if not path.is_file():
            kept = f"steps {self.steps()[0]} to {self.steps()[-1]} have one" if self.steps() else "none has"
            raise CheckpointError(f"{path}: no rollout table for step {step}; {kept}")
        return self._table(path, ROLLOUT_COLUMNS)

    def evaluations(self) -> dict[str, Metrics]:
        """Name -> split -> metric -> value, in the order of training.

        A name is a phase of `eval.json`, or the stem of a file that `vlm-r1 eval --out` wrote into the folder.
        """
        found = shown_evaluation(self.inside("eval.json"), self.tell("eval.json"))
        for path in sorted(self.path.glob("*.json")):
            if path.stem not in found and path.with_suffix(".parquet").is_file():
                found |= shown_evaluation(self.inside(path.name), self.tell(path.name), path.stem)
        last = max((row["step"] for row in self.metrics()), default=10**18)
        places = {name: phase_step(name, last) for name in found}
        return dict(sorted(found.items(), key=lambda item: (places[item[0]] is None, places[item[0]] or 0)))

    def samples(self, name: str) -> list[Row]:
        """The held-out questions of one evaluation (`EVAL_COLUMNS`); empty where they were not kept."""
        path = self.evaluation_table(name)
        return self._table(path, EVAL_COLUMNS) if path.is_file() else []

    def evaluation_table(self, name: str) -> Path:
        """Where the questions of one evaluation are, if they were kept."""
        kept = self.inside(f"eval-{name}.parquet")
        return kept if kept.is_file() else self.inside(f"{name}.parquet")

    def images(self, name: str) -> HeldOutImages:
        """Finds the images of the held-out questions of one evaluation."""
        path = self.evaluation_table(name)
        version = (str(path), path.stat().st_mtime_ns if path.is_file() else 0)
        with self._lock:
            if self._images.get(name, (None,))[0] != version:
                self._images[name] = (version, HeldOutImages([path]))
            return self._images[name][1]

    def rollout_table(self, step: int) -> Path:
        """Where the answers of one step are."""
        return self.inside(f"rollouts/step-{step:06d}.parquet")

    def text(self, name: str) -> str | None:
        """A text file of the folder; None where there is none."""
        path = self.inside(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    @property
    def written(self) -> float:
        """When the run wrote last, in seconds since 1970; 0 where it has written nothing."""
        return last_change(self.path) or 0.0

    def version(self) -> tuple[Any, ...]:
        """Changes when something of the run was written."""
        found: list[Any] = []
        for name in ("metrics.jsonl", "rollouts", "eval.json", "final"):
            try:
                state = (self.path / name).stat()
                found.append((state.st_mtime_ns, state.st_size))
            except OSError:
                found.append(None)
        return tuple(found)

    def inside(self, name: str) -> Path:
        """A path in the folder. Raises `CheckpointError` where it leads outside, also through a link."""
        path = self.path / name
        if not Path(os.path.realpath(path)).is_relative_to(self.path):
            raise CheckpointError(f"{path}: leads outside the run folder; the viewer reads nothing there")
        return path

    def _table(self, path: Path, schema: pa.Schema) -> list[Row]:
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size)
        with self._lock:
            if key not in self._tables:
                self._tables[key] = shown_rows(path, schema, self.tell(path.name))
                while len(self._tables) > TABLES_KEPT:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
            return self._tables[key]


class _MetricsLog:
    """`metrics.jsonl`, read from where the last reading stopped; from the start where the file was replaced."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._place: tuple[int, int] = (0, 0)
        self._rows: list[Row] = []
        self._thin = Thinned()
        self._lock = threading.Lock()
        self.faults: list[str] = []

    def read(self) -> list[Row]:
        with self._lock:
            return self._read_on()

    def thinned(self) -> list[dict[str, float]]:
        with self._lock:
            self._read_on()
            return self._thin.rows()

    def _read_on(self) -> list[Row]:
        path = self._folder.inside("metrics.jsonl")
        try:
            with open(path, "rb") as file:
                state = os.fstat(file.fileno())
                inode, offset = self._place
                if inode != state.st_ino or state.st_size < offset:
                    self._rows, self._thin, self.faults, offset = [], Thinned(), [], 0
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return self._rows
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].split(b"\n"):
            self._take(line)
        self._place = (state.st_ino, offset + whole)
        return self._rows

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        row, odd = metrics_row(line)
        self.faults += [fault if row is None else f"step {row['step']}: {fault}" for fault in odd]
        if row is not None:
            self._rows.append(row)
            self._thin.add(row)
