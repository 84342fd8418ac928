"""What is in a data file, and everything that is wrong with it, in one pass."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlm_r1.data.images import ImageFinder
from vlm_r1.data.jsonl import empty_file, iter_rows, row_name
from vlm_r1.data.rows import RowContext, examine_row
from vlm_r1.errors import DataError, Fault, RowError
from vlm_r1.records import Sample, SampleImage


@dataclass(slots=True, kw_only=True)
class Report:
    """What a check found. `faults` holds `(line or row from 1, fault)` in file order; `sizes` are `(width, height)`
    of each different image; the other lists have one entry a good row.

    Example: `inspect_file(Path("train.jsonl")).faults == []` says that the file can be trained on.
    """

    path: Path
    rows: int = 0
    bad_rows: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    rewards: Counter[str] = field(default_factory=Counter)
    images: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    boxes: list[int] = field(default_factory=list)
    question_lengths: list[int] = field(default_factory=list)
    faults: list[tuple[int, Fault]] = field(default_factory=list)

    def table(self) -> str:
        """The contents as aligned text, one property a line."""
        rows = [("rows", f"{self.rows} ({self.rows - self.bad_rows} good, {self.bad_rows} with faults)")]
        rows.append(("tasks", _counts(self.tasks)))
        if self.rewards:
            rows.append(("rewards", _counts(self.rewards)))
        rows.append(("images a row", _counts(Counter(self.images))))
        if self.sizes:
            rows.append(("different images", str(len(self.sizes))))
            rows.append(("width", _spread([width for width, _ in self.sizes], "px")))
            rows.append(("height", _spread([height for _, height in self.sizes], "px")))
        if self.boxes:
            rows.append(("boxes a row", _spread(self.boxes)))
        if self.question_lengths:
            rows.append(("question length", _spread(self.question_lengths, "characters")))
        rows.append(("faults", _counts(Counter(fault.kind for _, fault in self.faults)) or "none"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

    def messages(self) -> list[str]:
        """One line for each fault: where, what, and what to do."""
        return [f"{row_name(self.path, line)}: {fault}" for line, fault in self.faults]


def check_file(path: Path, image_root: Path | None = None, task: str | None = None) -> Report:
    """Print what is in a data file and every fault in it. Raises `DataError` at the end where there are faults."""
    report = inspect_file(path, image_root, task)
    print(report.table())
    for message in report.messages():
        print(message)
    if report.faults:
        raise DataError(f"{path}: {len(report.faults)} faults in {report.bad_rows} of {report.rows} rows; fix them")
    return report


def inspect_file(path: Path, image_root: Path | None = None, task: str | None = None) -> Report:
    """Read every row and decode every image of a data file (JSONL, JSON or Parquet).

    Relative image paths start from `image_root` (default: the file's folder); `task` is that of rows that name
    none. Raises `DataError` for a file that cannot be read as a whole or has no rows.
    """
    root = image_root if image_root is not None else path.parent
    if not root.is_dir():
        raise DataError(f'image_root "{root}" is not a folder; correct it')
    context = RowContext(name=path.name, finder=ImageFinder(root), task=task)
    report = Report(path=path)
    decoded: dict[Path, tuple[int, int] | Fault] = {}
    ids: dict[str, int] = {}
    for number, row in iter_rows(path):
        report.rows += 1
        sample, found, images = (None, [row], []) if isinstance(row, Fault) else examine_row(row, context, number)
        # Where boxes were placed, a bad header has been found already.
        found = found + [fault for fault in _image_faults(images, decoded, report) if fault not in found]
        if sample is not None and isinstance(row, dict) and row.get("id") is not None:
            first = ids.setdefault(sample.id, number)
            if first != number:
                what = f'id "{sample.id}" is also that of {row_name(path, first)}'
                found.append(Fault(kind="duplicate_id", what=what, remedy="Give each row an id of its own"))
        report.faults += [(number, fault) for fault in found]
        if found:
            report.bad_rows += 1
        elif sample is not None:
            _count(sample, report)
    if not report.rows:
        raise empty_file(path)
    return report


def _image_faults(
    images: Sequence[SampleImage], decoded: dict[Path, tuple[int, int] | Fault], report: Report
) -> list[Fault]:
    """Faults of a row's images, each file decoded once; the sizes of new ones go into the report."""
    faults = []
    for image in images:
        if image.path is not None and image.path in decoded:
            result = decoded[image.path]
        else:
            result = _decode(image)
            if image.path is not None:
                decoded[image.path] = result
            if not isinstance(result, Fault):
                report.sizes.append(result)
        if isinstance(result, Fault):
            faults.append(result)
    return faults


def _decode(image: SampleImage) -> tuple[int, int] | Fault:
    kind = None
    try:
        _ = image.size
        kind = "image_truncated"  # its header could be read, so the rest of the file is damaged or cut off
        return image.open().size
    except RowError as error:
        fault = error.faults[0]
        return replace(fault, kind=kind) if kind and fault.kind == "image_unreadable" else fault


def _count(sample: Sample, report: Report) -> None:
    report.tasks[sample.task] += 1
    report.images.append(len(sample.images))
    report.question_lengths.append(len(sample.question))
    if sample.truth.boxes is not None:
        report.boxes.append(len(sample.truth.boxes))
    if sample.reward is not None:
        report.rewards[sample.reward] += 1


def _counts(counter: Counter[str] | Counter[int]) -> str:
    return ", ".join(f"{key}: {count}" for key, count in sorted(counter.items(), key=lambda item: str(item[0])))


def _spread(values: Sequence[float], unit: str = "") -> str:
    middle = statistics.median(values)
    return f"{min(values)} to {max(values)}, median {middle:g} {unit}".rstrip()
