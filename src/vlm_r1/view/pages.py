"""The page's pieces as HTML: strips of images, one question with its answers, curves, facts. All text is escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from vlm_r1.report.curves import per_row
from vlm_r1.report.evaluations import CompareRow
from vlm_r1.report.findings import MINUS, boxes_words, metric_name, number, signed, split_name
from vlm_r1.report.images import View
from vlm_r1.report.plots import SIZE, Plot
from vlm_r1.runtime.runlog import boxes_from_json
from vlm_r1.view.cards import SMALL, Card, Row, cards, colour, drawing, score_of, span
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.groups import Group
from vlm_r1.view.settings import differences, made
from vlm_r1.view.training import sections, status, tiles, warnings

PAGE = 24
"""Images in a strip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumb:
    """An image in a strip: `pick` is what a click on it says."""

    pick: str
    drawing: View
    head: str
    score: str
    colour: str
    text: str
    tags: tuple[str, ...]
    chosen: bool

    @property
    def tone(self) -> str:
        """The class of a change in the head, empty for other heads."""
        return "vr-up" if self.head.startswith("+") else "vr-down" if self.head.startswith(MINUS) else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The answers of one moment or one evaluation; `ends` are the scores at the ends of the colours, and their name."""

    title: str
    drawing: View
    ends: tuple[float, float, str]
    cards: tuple[Card, ...]


@cache
def _environment() -> Environment:
    loader = ChoiceLoader([PackageLoader("vlm_r1.view"), PackageLoader("vlm_r1.report")])
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.globals |= {"number": number, "signed": signed, "metric_name": metric_name, "split_name": split_name}
    found.globals["per_row"] = per_row
    found.globals["size"] = SIZE
    return found


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)


def notice(text: str) -> str:
    """A message in place of what cannot be shown."""
    return _render("notice.j2", text=text)


def head(runs: Sequence[RunFolder]) -> str:
    """A line about each run."""
    return _render("head.j2", statuses=[status(run) for run in runs])


def training(runs: Sequence[RunFolder]) -> str:
    """The numbers, warnings and curves of the runs."""
    return _render(
        "training.j2",
        tiles=[(run.name, found) for run in runs if (found := tiles(run))],
        warnings=[(run.name, warnings(run)) for run in runs],
        sections=sections(runs),
        several=len(runs) > 1,
    )


def curves(charts: Sequence[Plot]) -> str:
    """Some charts."""
    return _render("curves.j2", charts=charts)


def strip(
    groups: Sequence[Group],
    chosen: int,
    page: int,
    label: str,
    said: str = "",
    text: Callable[[Group], str] = lambda group: group.question,
) -> str:
    """A strip of at most `PAGE` of the groups; a click says the place of its group, or "page:N"."""
    ends = span([row for group in groups for row in group.rows])
    first = page * PAGE
    thumbs = [
        Thumb(
            pick=str(place),
            drawing=drawing(group.rows, group.image, ends, SMALL),
            head=group.name,
            score="" if group.mean is None else number(group.mean),
            colour=colour(group.mean, ends),
            text=text(group),
            tags=tags(group),
            chosen=place == chosen,
        )
        for place, group in enumerate(groups[first : first + PAGE], start=first)
    ]
    pages = -(-len(groups) // PAGE)
    return _render("strip.j2", thumbs=thumbs, page=page, pages=pages, label=label, said=said)


def tags(group: Group) -> tuple[str, ...]:
    """What is odd about a group, in a few words."""
    lost = group.unreadable
    found = [f"{lost} of {len(group.rows)} unreadable" if len(group.rows) > 1 else "unreadable"] if lost else []
    return (*found, "zero variance") if group.flat else tuple(found)


def side(group: Group, title: str = "", ends: tuple[float, float] | None = None) -> Side:
    """The large image and the cards of a group; `ends` default to those of its own scores."""
    ends = ends if ends is not None else span(group.rows)
    return Side(
        title=title,
        drawing=drawing(group.rows, group.image, ends),
        ends=(*ends, score_of(group.rows[0])[0]),
        cards=tuple(cards(group.rows, ends)),
    )


def detail(question: str, facts: Sequence[str], sides: Sequence[Side], follow: bool = False) -> str:
    """One question with its answers; with `follow`, a button that says "follow"."""
    return _render("detail.j2", question=question, facts=[fact for fact in facts if fact], sides=sides, follow=follow)


def table(names: Sequence[str], rows: Sequence[CompareRow]) -> str:
    """Metrics of one evaluation, or of two with their difference."""
    return _render("table.j2", names=names, rows=rows)


def settings(runs: Sequence[RunFolder]) -> str:
    """What the runs were made with."""
    different = differences(runs) if len(runs) > 1 else None
    return _render("settings.j2", runs=[made(run) for run in runs], differences=different)


def facts_of(row: Row) -> list[str]:
    """Where a question comes from."""
    size = f"{row['image_width']} x {row['image_height']} pixels" if row.get("image_width") else ""
    true = boxes_words(boxes_from_json(row.get("true_boxes")))
    told = f"true box{'es' * (true.count('(') != 1)} {true}" if true else ""
    return [*(str(row.get(name) or "") for name in ("source", "task", "sample_id")), size, told]
