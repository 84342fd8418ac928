"""The tab of evaluations: metrics with intervals, and the held-out questions one by one, beside those of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from vlm_r1.errors import CheckpointError
from vlm_r1.report.findings import signed, split_name
from vlm_r1.report.pairs import Pair
from vlm_r1.view import pages
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.parts import QUIET, drawn, guarded, picked, told
from vlm_r1.view.samples import SHOW, Chosen, choices, group, pairs_of, select, table

ALONE = "nothing"
NONE_YET = "No evaluation yet: training writes eval.json, and vlm-r1 eval --out RUN/eval.json adds one."

_guarded = guarded(lambda said: (said, "", None))


class EvaluationTab:
    """The tab's components. `follow` is clicked to follow the question whose key is in `key`."""

    def __init__(self, runs: Mapping[str, RunFolder]) -> None:
        self.runs = runs
        with gr.Row(elem_classes="vr-controls"):
            self.new = gr.Dropdown([], label="Evaluation", filterable=False)
            self.old = gr.Dropdown([], label="Compared with", filterable=False)
            self.split = gr.Dropdown([], label="Split", filterable=False)
        with gr.Row(elem_classes="vr-controls"):
            self.show = gr.Radio(list(SHOW), value=SHOW[0], label="Show")
        self.table = drawn("evaluation-table")
        self.strip = drawn("evaluation-strip", pick=True)
        self.follow = drawn("evaluation-detail", pick=True)
        self.key = gr.State(None)

    def connect(self, tab: gr.Tab) -> None:
        """Wire the events; `tab` being opened fills it."""
        chosen = [self.new, self.old]
        asked = [*chosen, self.split, self.show]
        drawn_now = [self.strip, self.follow, self.key]
        tab.select(self._open, asked, [*asked[:3], self.table, *drawn_now], **QUIET)
        gr.on([self.new.input, self.old.input], self._open, asked, [*asked[:3], self.table, *drawn_now], **QUIET)
        gr.on([self.split.input, self.show.input], self._look, asked, drawn_now, **QUIET)
        self.strip.select(self._pick, asked, drawn_now, **QUIET)

    @guarded(lambda said: (*(gr.skip(),) * 3, said, "", "", None))
    def _open(self, new: str | None, old: str | None, split: str | None, show: str) -> tuple[Any, ...]:
        known = self._known()
        if not known:
            return (*(gr.skip(),) * 3, pages.notice(NONE_YET), "", "", None)
        new = new if new in known else list(known)[-1]
        old = old if old in known or old == ALONE else next(iter(known))
        old = ALONE if old == new else old
        splits = list(pairs_of(known[new], None))
        split = split if split in splits else next(iter(splits), None)
        menus = (
            gr.Dropdown(choices=list(known), value=new),
            gr.Dropdown(choices=[ALONE, *known], value=old),
            gr.Dropdown(choices=[(split_name(name), name) for name in splits], value=split),
        )
        metrics = told(lambda: pages.table(*table(known[new], known.get(old))))
        return (*menus, metrics, *self._look(new, old, split, show))

    @_guarded
    def _look(self, new: str, old: str, split: str | None, show: str, page: int = 0) -> tuple[Any, ...]:
        pairs = self._pairs(new, old, split, show)
        said = f"{len(pairs)} questions." + (" In green or red: the change of the score." if old != ALONE else "")
        place = page * pages.PAGE
        chosen = self._known()[new]
        strip = pages.strip([group(pair, chosen) for pair in pairs], place, page, "held-out questions", said)
        return (strip, *self._detail(new, old, pairs, place))

    @_guarded
    def _pick(self, new: str, old: str, split: str | None, show: str, event: gr.EventData) -> tuple[Any, ...]:
        kind, _, number = picked(event).rpartition(":")
        if kind == "page":
            return self._look(new, old, split, show, int(number))
        return (gr.skip(), *self._detail(new, old, self._pairs(new, old, split, show), int(number)))

    def _known(self) -> dict[str, Chosen]:
        return {chosen.label: chosen for chosen in choices(list(self.runs.values()))}

    def _pairs(self, new: str, old: str, split: str | None, show: str) -> list[Pair]:
        known = self._known()
        if new not in known:
            raise CheckpointError(f"{new}: this evaluation is gone; open the tab again")
        return select(pairs_of(known[new], known.get(old)).get(split or "", []), show)

    def _detail(self, new: str, old: str, pairs: list[Pair], place: int) -> tuple[str, Any]:
        if not pairs:
            return (pages.notice("No question of this split is like that, or the run kept no rows."), None)
        pair = pairs[min(place, len(pairs) - 1)]
        chosen = self._known()[new]
        found = group(pair, chosen)
        sides = [pages.side(group(pair, chosen, old=True), title=old)] if pair.before else []
        sides.append(pages.side(found, title=new if pair.before else ""))
        change = "" if pair.gain is None else f"change {signed(pair.gain)}"
        facts = [change, *pages.facts_of(pair.row)]
        return (pages.detail(found.question, facts, sides, follow=True), found.key)
