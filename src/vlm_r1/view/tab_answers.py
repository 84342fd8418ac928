"""The tab of training answers: the groups of a step, filtered, and one group in full."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any

import gradio as gr

from vlm_r1.errors import CheckpointError
from vlm_r1.view import pages
from vlm_r1.view.cards import span
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.groups import SHOW, Group, groups_of, nearest_step, select, select_steps
from vlm_r1.view.parts import QUIET, drawn, guarded, picked

NONE_KEPT = (
    "The run has kept no answers. Supervised runs have none; others keep them every run.log_rollouts_every steps, "
    "and the first appear when such a step is done."
)


NO_SUCH_STEP = "No step of the run is like that."

_guarded = guarded(lambda said: (gr.skip(), said, "", None, gr.skip()))


class AnswersTab:
    """The tab's components. `follow` is clicked to follow the question whose key is in `key`."""

    def __init__(self, runs: Mapping[str, RunFolder]) -> None:
        self.runs = runs
        names = list(runs)
        with gr.Row(elem_classes="vr-controls"):
            self.run = gr.Dropdown(names, value=names[0], label="Run", visible=len(names) > 1, filterable=False)
            self.show = gr.Radio(list(SHOW), value=SHOW[0], label="Show", scale=3, min_width=320)
        with gr.Row(elem_classes="vr-controls"):
            self.step = gr.Slider(0, 1, value=0, step=1, label="Step", scale=4, elem_id="answers-step", buttons=[])
            with gr.Row(elem_classes="vr-moves"):
                moves = [(gr.Button(name, size="md"), name) for name in MOVES]
            self.newest = gr.Checkbox(False, label="Follow the newest step", scale=0, min_width=240)
        self.strip = drawn("answers-strip", pick=True)
        self.follow = drawn("answers-detail", pick=True)
        self.key, self.wanted = gr.State(None), gr.State(None)
        self.at = gr.State(0)  # the step: the slider's own value may lie outside a range that has just changed
        self._moves = moves

    def connect(self, tab: gr.Tab, timer: gr.Timer, curves: gr.HTML, tabs: gr.Tabs) -> None:
        """Wire the events; `tab` being opened fills it, and so does a step that is picked from the curves."""
        asked = [self.run, self.show, self.at]
        filled = [self.step, self.strip, self.follow, self.key, self.at]
        gr.on([self.run.change, self.show.change], self._look, asked, filled, **QUIET)
        self.step.input(self._look, [self.run, self.show, self.step], filled, **QUIET)
        for button, name in self._moves:
            button.click(lambda run, show, step, name=name: self._move(run, show, step, name), asked, filled, **QUIET)
        self.strip.select(self._pick, asked, [self.strip, self.follow, self.key], **QUIET)
        tab.select(self._open, [*asked, self.wanted], [*filled, self.wanted], **QUIET)
        # A tab that was never open takes no values yet: it is told when it opens.
        told = curves.select(_step_of, None, [self.wanted], **QUIET)
        told.then(lambda: gr.Tabs(selected="answers"), None, [tabs], **QUIET)
        gr.on([timer.tick, self.newest.change], self._newest, [*asked, self.newest], filled, **QUIET)

    @_guarded
    def _look(self, run: str, show: str, step: int) -> tuple[Any, ...]:
        folder = self.runs[run]
        steps = select_steps(folder.steps(), folder.metrics(), show)
        at = nearest_step(steps, int(step))
        if at is None:
            return (gr.skip(), pages.notice(NO_SUCH_STEP if folder.steps() else NONE_KEPT), "", None, step)
        first, last = folder.steps()[0], folder.steps()[-1]
        slider = gr.Slider(minimum=first, maximum=max(last, first + 1), value=at)
        try:
            groups = select(groups_of(folder.rollouts(at)), show)
        except CheckpointError as error:  # the step is shown, so that one can walk on past it
            return (slider, pages.notice(str(error)), "", None, at)
        return (slider, self._strip(run, at, groups, 0), *self._detail(at, groups, 0), at)

    @_guarded
    def _move(self, run: str, show: str, step: int, name: str) -> tuple[Any, ...]:
        folder = self.runs[run]
        steps = select_steps(folder.steps(), folder.metrics(), show)
        return self._look(run, show, MOVES[name](steps, int(step)) if steps else step)

    @_guarded
    def _newest(self, run: str, show: str, step: int, follow: bool) -> tuple[Any, ...]:
        steps = self.runs[run].steps()
        if not follow or not steps or steps[-1] == step:
            return (gr.skip(),) * 5
        return self._look(run, show, steps[-1])

    def _open(self, run: str, show: str, step: int, wanted: int | None) -> tuple[Any, ...]:
        return (*self._look(run, show, step if wanted is None else wanted), None)

    @guarded(lambda said: (gr.skip(), said, None))
    def _pick(self, run: str, show: str, step: int, event: gr.EventData) -> tuple[Any, ...]:
        kind, _, number = picked(event).rpartition(":")
        groups = select(groups_of(self.runs[run].rollouts(int(step))), show)
        if kind == "page":
            strip = self._strip(run, int(step), groups, int(number))
            return (strip, *self._detail(int(step), groups, int(number) * pages.PAGE))
        return (gr.skip(), *self._detail(int(step), groups, int(number)))

    def _strip(self, run: str, step: int, groups: list[Group], page: int) -> str:
        row = next((row for row in self.runs[run].metrics() if row["step"] == step), {})
        said = [f"Step {step}: {len(groups)} groups, {sum(len(group.rows) for group in groups)} answers."]
        said += [f"Warning: {text}" for text in row.get("warnings") or []]
        return pages.strip(groups, page * pages.PAGE, page, "groups of the step", " ".join(said))

    def _detail(self, step: int, groups: list[Group], place: int) -> tuple[str, Any]:
        if not groups:
            return (pages.notice("No group of this step is like that."), None)
        group = groups[min(place, len(groups) - 1)]
        spread = f"rewards {min(group.scores):.3f} to {max(group.scores):.3f}" if group.scores else "no rewards"
        facts = [f"step {step}", group.name, spread, *pages.tags(group), *pages.facts_of(group.rows[0])]
        ends = span([row for other in groups for row in other.rows])
        return (pages.detail(group.question, facts, [pages.side(group, ends=ends)], follow=True), group.key)


def _step_of(event: gr.EventData) -> int:
    return int(picked(event).removeprefix("step:"))


MOVES = {
    "First": lambda steps, at: steps[0],
    "Previous": lambda steps, at: steps[max(0, bisect_left(steps, at) - 1)],
    "Next": lambda steps, at: steps[min(len(steps) - 1, bisect_right(steps, at))],
    "Last": lambda steps, at: steps[-1],
}
"""Name of a button -> the step that it goes to."""
