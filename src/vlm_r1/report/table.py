"""The table before -> after, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from vlm_r1.report.evaluations import shared_metrics
from vlm_r1.report.findings import metric_name, number, signed, split_name

Evaluation = Mapping[str, Mapping[str, Mapping[str, Any]]]

_HEAD = ("split", "metric", "questions", "before", "after", "difference")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One metric of one split; what is not known is None.

    Example: `TableRow(split="in_domain", metric="mean_iou", n=2, before=0.25, after=0.75).cells[-1]` is "+0.500".
    """

    split: str
    metric: str
    n: int | None
    before: float | None
    after: float | None

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as people read it, in the order of the table's head."""
        values = ["" if value is None else number(value) for value in (self.before, self.after)]
        change = "" if self.before is None or self.after is None else signed(self.after - self.before)
        n = "" if self.n is None else str(self.n)
        return (split_name(self.split), metric_name(self.metric), n, *values, change)


def before_after_table(eval: Evaluation) -> Table:
    """What `eval.json` says, as a table for the terminal; a lone evaluation has no difference.

    `eval` is phase -> split -> metric -> value, as `runtime.runlog.read_eval` returns it.
    """
    table = Table(title="held-out questions", title_justify="left")
    for place, name in enumerate(_HEAD):
        table.add_column(name, justify="left" if place < 2 else "right")
    for row in before_after_rows(eval):
        table.add_row(*(escape(cell) for cell in row.cells))
    return table


def before_after_markdown(eval: Evaluation) -> str:
    """The same table as Markdown."""
    rows = [row.cells for row in before_after_rows(eval)]
    lines = [_HEAD, ("---", "---", "---:", "---:", "---:", "---:"), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def before_after_rows(eval: Evaluation) -> list[TableRow]:
    """The rows of the table, split by split in the order of `eval.json`.

    An `eval` with neither "before" nor "after" (another phase only) has its last phase in the column "after".
    """
    before, after = eval.get("before"), eval.get("after")
    if before is None and after is None and eval:
        after = list(eval.values())[-1]
    known = [phase for phase in (before, after) if phase is not None]
    names = list(dict.fromkeys(name for phase in known for name in shared_metrics([(phase, phase)])))
    splits = list(dict.fromkeys(split for split, _ in names))
    rows = []
    for split, metric in sorted(names, key=lambda name: splits.index(name[0])):
        # A kind of failure that did not happen is not listed by the evaluation: its share is zero.
        unlisted = 0.0 if metric.startswith("failures/") else None
        old, new = (
            phase[split].get(metric, unlisted) if phase and split in phase else None for phase in (before, after)
        )
        n = next((phase[split]["n"] for phase in reversed(known) if phase.get(split, {}).get("n") is not None), None)
        rows.append(TableRow(split=split, metric=metric, n=None if n is None else int(n), before=old, after=new))
    return rows
