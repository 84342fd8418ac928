"""The tab of one question over time: how it was answered before, during and after training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from vlm_r1.report.curves import Line
from vlm_r1.report.plots import plots
from vlm_r1.view import pages
from vlm_r1.view.cards import span
from vlm_r1.view.groups import Group
from vlm_r1.view.history import Index, Key, count, moments, scores, search
from vlm_r1.view.parts import QUIET, drawn, guarded, picked

ONCE = "Asked once so far. Held-out questions are asked at every evaluation, training questions once an epoch."

_guarded = guarded(lambda said: ("", said, "", "", gr.skip(), *_moves(0, 0)))


class QuestionTab:
    """The tab's components; `runs` is the choice of runs above the tabs."""

    def __init__(self, indices: Mapping[str, Index], runs: gr.CheckboxGroup) -> None:
        self.indices, self.runs = indices, runs
        with gr.Row(elem_classes="vr-controls"):
            self.text = gr.Textbox(
                label="Find a question", placeholder="some words, or its sample id", scale=1, min_width=240
            )
            self.question = gr.Dropdown([], label="Question", scale=2, min_width=260)
            with gr.Row(elem_classes="vr-moves"):
                self.back = gr.Button("Previous moment", size="md")
                self.on = gr.Button("Next moment", size="md")
        self.said = drawn("question-said")
        self.strip = drawn("question-strip", pick=True)
        self.detail = drawn("question-detail")
        self.curve = drawn("question-curve")
        self.wanted = gr.State(None)
        self.shown = gr.State(("", 0, 0))  # the question, the place of the moment that is shown, how many there are

    def connect(self, tab: gr.Tab, timer: gr.Timer) -> None:
        """Wire the events; `tab` being opened fills it."""
        filled = [self.said, self.strip, self.detail, self.curve, self.shown, self.back, self.on]
        asked = [self.runs, self.text, self.question]
        tab.select(self._open, [*asked, self.wanted], [self.text, self.question, self.wanted], **QUIET)
        self.text.change(self._find, asked, [self.question], **QUIET)
        # One after another: each reads the place that the one before has left, the timer included.
        turn = {**QUIET, "concurrency_id": "question"}
        gr.on([self.question.change, self.runs.change], self._look, [self.runs, self.question], filled, **turn)
        state = [self.runs, self.shown]
        self.strip.select(self._pick, state, filled, **turn)
        self.back.click(lambda runs, shown: self._look(runs, shown[0], shown[1] - 1), state, filled, **turn)
        self.on.click(lambda runs, shown: self._look(runs, shown[0], shown[1] + 1), state, filled, **turn)
        timer.tick(self._more, [*state, self.said], filled, **turn)

    def follow(self, source: gr.HTML, key: gr.State, tabs: gr.Tabs) -> None:
        """Let a click in `source` bring the question whose key is in `key`."""
        # A tab that was never open takes no values yet: it is told when it opens.
        told = source.select(lambda key: key, [key], [self.wanted], **QUIET)
        told.then(lambda: gr.Tabs(selected="question"), None, [tabs], **QUIET)

    def _chosen(self, runs: Sequence[str]) -> list[Index]:
        return [index for name, index in self.indices.items() if name in (runs or self.indices)]

    @guarded(lambda said: (gr.skip(),) * 3)
    def _open(self, runs: Sequence[str], text: str, now: str | None, wanted: Sequence[str] | None) -> tuple[Any, ...]:
        if wanted is not None:
            text, now = "", _value((wanted[0], wanted[1]))
        return (text, self._find(runs, text, now), None)

    @guarded(lambda said: gr.skip())
    def _find(self, runs: Sequence[str], text: str, now: str | None) -> Any:
        chosen = self._chosen(runs)
        for index in chosen:
            index.read_on()
        found = search(chosen, text or "")
        if now and not text and _key(now) not in found:
            found.insert(0, _key(now))
        values = [_value(key) for key in found]
        value = now if now in values else next(iter(values), None)
        return gr.Dropdown(choices=[(_label(key), _value(key)) for key in found], value=value)

    def _pick(self, runs: Sequence[str], shown: tuple[str, int, int], event: gr.EventData) -> tuple[Any, ...]:
        kind, _, number = picked(event).rpartition(":")
        if kind == "page":
            return self._look(runs, shown[0], int(number) * pages.PAGE)
        return self._look(runs, shown[0], int(number), redraw=False)

    @_guarded
    def _more(self, runs: Sequence[str], shown: tuple[str, int, int], said: str) -> tuple[Any, ...]:
        """What was written or read since."""
        question, place, known = shown
        if not question:
            return (gr.skip(),) * 7
        chosen = self._chosen(runs)
        for index in chosen:
            index.read_on()
        if count(chosen, _key(question)) != known:
            return self._look(runs, question, place)
        progress = self._progress(runs)
        return (gr.skip() if progress == said else progress, *(gr.skip(),) * 6)

    def _progress(self, runs: Sequence[str]) -> str:
        counts = [index.progress for index in self._chosen(runs)]
        read, there = sum(n for n, _ in counts), sum(n for _, n in counts)
        looking = f"Looking through the training answers: {read:,} of {there:,} steps."
        return pages.notice(looking) if read < there else ""

    @_guarded
    def _look(self, runs: Sequence[str], question: str | None, place: int = 0, redraw: bool = True) -> tuple[Any, ...]:
        if not question:
            nothing = pages.notice("No question is chosen, or the runs have kept none.")
            return ("", nothing, "", "", ("", 0, 0), *_moves(0, 0))
        return (self._progress(runs), *self._found(runs, question, place, redraw))

    def _found(self, runs: Sequence[str], question: str, place: int, redraw: bool) -> tuple[Any, ...]:
        chosen = self._chosen(runs)
        known = count(chosen, _key(question))
        found = moments(chosen, _key(question))
        if not found:
            nothing = pages.notice("This question was not asked in the runs that are chosen.")
            return (nothing, "", "", (question, 0, known), *_moves(0, 0))
        groups = [moment.group for moment in found]
        place = max(0, min(place, len(groups) - 1))
        many = len(groups) > 1
        strip = pages.strip(groups, place, place // pages.PAGE, "moments", text=_answer) if many else pages.notice(ONCE)
        group = groups[place]
        ends = span([row for other in groups if _kind(other) == _kind(group) for row in other.rows])
        facts = [group.name, *pages.tags(group), *pages.facts_of(group.rows[0])]
        detail = pages.detail(group.question, facts, [pages.side(group, ends=ends)])
        names = [index.run.name for index in chosen]
        line = Line(label="", runs=[scores(found, name) for name in names])
        curve = plots("Score of this question", "reward or IoU, mean over the answers", [line], names) if many else []
        moves = _moves(place, len(groups))
        return (strip if redraw else gr.skip(), detail, pages.curves(curve), (question, place, known), *moves)


def _moves(place: int, of: int) -> tuple[Any, Any]:
    """The buttons to the moment before and after one of several."""
    return (gr.Button(interactive=place > 0), gr.Button(interactive=place < of - 1))


def _answer(group: Group) -> str:
    row = group.rows[0]
    return str(row.get("answer") or row.get("completion") or "")


def _kind(group: Group) -> bool:
    return "reward" in group.rows[0]


def _value(key: Key) -> str:
    return json.dumps(key)


def _key(value: str) -> Key:
    sample, question = json.loads(value)
    return (sample, question)


def _label(key: Key) -> str:
    return f"{key[1]} ({key[0]})"
