"""Images of held-out questions: the few that an evaluation's table keeps, and the rest from the data it was made of."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlm_r1.config import DataSource
from vlm_r1.data.source import load_source
from vlm_r1.errors import DataError, UserError
from vlm_r1.records import Sample
from vlm_r1.runtime.rows import image_bytes
from vlm_r1.runtime.runlog import read_eval_data, read_samples

Row = Mapping[str, Any]

_KEY = ("split", "sample_id", "question")


class HeldOutImages:
    """Finds the images of the rows (`EVAL_COLUMNS`) of some tables of evaluations.

    A table names its data sets, and its rows stand in their order, so the k-th row of a split is its k-th sample. A
    data set is read when the first of its images is asked for, and a scene is drawn again.

    Example: `HeldOutImages([Path("runs/demo/eval-after.parquet")]).find([row])` is the encoded image.
    """

    def __init__(self, tables: Iterable[Path]) -> None:
        self._tables = [_Table(path) for path in tables if path.is_file()]

    def find(self, rows: Iterable[Row]) -> bytes:
        """The encoded image of rows about one question. Raises `DataError` where it is nowhere to be found."""
        rows = [row for row in rows if row]
        stored = next((row["image"] for row in rows if row.get("image") is not None), None)
        if stored is not None:
            return stored
        why: Exception = DataError("the run kept no image of this question, and its table names no data set")
        for table in self._tables:
            try:
                return table.find(rows[0])
            except (UserError, OSError) as error:
                why = error
        raise DataError(f"No image: {why}")


class _Table:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[tuple[Any, ...], int] | None = None
        self._splits: dict[str, Sequence[Sample] | DataError] = {}
        self._lock = threading.Lock()

    def find(self, row: Row) -> bytes:
        """The encoded image of a row, from the data set. Raises `DataError` where that has changed."""
        split = row.get("split") or ""
        with self._lock:
            place, samples = self._place(row), self._samples(split)
        changed = DataError(f'the data of split "{split}" has changed since the evaluation')
        if place is None or place >= len(samples):
            raise changed
        sample = samples[place]
        size = (row.get("image_width"), row.get("image_height"))
        if (sample.id, sample.question) != (row.get("sample_id"), row.get("question")):
            raise changed
        if sample.images and sample.images[0].size != size:
            raise changed
        found = image_bytes(sample)
        if found is None:
            raise DataError("the question has no image")
        return found

    def _place(self, row: Row) -> int | None:
        """Which sample of its split a row is about."""
        if self._places is None:
            self._places, seen = {}, dict[str, int]()
            for other in read_samples(self._path, list(_KEY)):
                split = other.get("split") or ""
                seen[split] = seen.get(split, -1) + 1
                self._places.setdefault(tuple(other.get(name) for name in _KEY), seen[split])
        return self._places.get(tuple(row.get(name) for name in _KEY))

    def _samples(self, split: str) -> Sequence[Sample]:
        if split not in self._splits:
            self._splits[split] = self._load(split)
        found = self._splits[split]
        if isinstance(found, DataError):
            raise found
        return found

    def _load(self, split: str) -> Sequence[Sample] | DataError:
        """The samples of a split, or why they cannot be had: that is found out once."""
        data = read_eval_data(self._path)
        try:
            source = DataSource.model_validate(data["splits"][split])
            return load_source(source, base=Path(data["folder"]), seed=data["seed"])
        except (KeyError, TypeError, ValidationError):
            return DataError(f'{self._path.name} does not name the data of split "{split}"')
        except (UserError, OSError) as error:
            return DataError(str(error))
