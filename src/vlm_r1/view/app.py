"""The page: a tab for each thing one looks at, and a timer that shows what the runs have written since."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import gradio as gr

from vlm_r1.report.plots import COLOURS
from vlm_r1.view import pages
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.history import Index
from vlm_r1.view.parts import QUIET, drawn, told
from vlm_r1.view.tab_answers import AnswersTab
from vlm_r1.view.tab_evaluation import EvaluationTab
from vlm_r1.view.tab_question import QuestionTab

SECONDS, LOOK_SECONDS = 2.0, 10.0
"""Between two looks at the run folders, and at the folders around them for runs that are new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a browser shows: the state of the chosen runs, the lines about them, and the names to choose from."""

    version: str = ""
    head: str = ""
    names: tuple[str, ...] = ()


def build(find: Callable[[], list[RunFolder]]) -> gr.Blocks:
    """The page over the runs of `find`, which has at least one at first, and later those that are new."""
    by_name: dict[str, RunFolder] = {}
    indices: dict[str, Index] = {}
    looked = 0.0

    def look() -> None:
        nonlocal looked
        if time.monotonic() - looked >= LOOK_SECONDS or not by_name:
            for run in find():
                by_name[run.name] = run
                indices[run.name] = Index(run)
            looked = time.monotonic()

    look()
    for run in by_name.values():
        run.metrics()  # read before the first visitor waits for it
    first = list(by_name)[:COLOURS]

    def shown(chosen: list[str] | None) -> list[RunFolder]:
        return [run for name, run in by_name.items() if name in (chosen or first)]

    def fresh(chosen: list[str], seen: Seen) -> tuple[object, ...]:
        look()
        names = list(by_name)
        new = [name for name in names if seen.names and name not in seen.names]
        menus: tuple[object, ...] = (gr.skip(), gr.skip())
        if names != list(seen.names):
            chosen = [*(chosen or first), *new][:COLOURS] if len(chosen or first) < COLOURS else chosen
            several = len(names) > 1
            menus = (gr.CheckboxGroup(names, value=chosen, visible=several), gr.Dropdown(names, visible=several))
        kept = shown(chosen)
        curves, head = told(lambda: pages.training(kept)), told(lambda: pages.head(kept))  # the head names what was odd
        now = Seen(version=_version(kept), head=head, names=tuple(names))
        return (head, curves, now, *menus)

    def tick(chosen: list[str], seen: Seen) -> tuple[object, ...]:
        look()
        kept = shown(chosen)
        if len(by_name) != len(seen.names) or _version(kept) != seen.version:
            return fresh(chosen, seen)
        head = told(lambda: pages.head(kept))
        skipped = (gr.skip(),) * 5
        return skipped if head == seen.head else (head, gr.skip(), replace(seen, head=head), *skipped[3:])

    with gr.Blocks(title=f"VLM-R1: {', '.join(first)}", analytics_enabled=False, fill_width=True) as page:
        head = drawn("head")
        chosen = gr.CheckboxGroup(
            list(by_name), value=first, label="Runs", visible=len(by_name) > 1, elem_classes="vr-bare", elem_id="runs"
        )
        seen = gr.State(Seen())
        with gr.Tabs() as tabs:
            with gr.Tab("Training", id="training"):
                curves = drawn("training", pick=True)
            with gr.Tab("Answers", id="answers") as answers_tab:
                answers = AnswersTab(by_name)
            with gr.Tab("One question", id="question") as question_tab:
                question = QuestionTab(indices, chosen)
            with gr.Tab("Evaluation", id="evaluation") as evaluation_tab:
                evaluation = EvaluationTab(by_name)
            with gr.Tab("Settings", id="settings") as settings_tab:
                settings = drawn("settings")
        timer = gr.Timer(SECONDS)

        drawn_now = [head, curves, seen, chosen, answers.run]
        gr.on([page.load, chosen.change], fresh, [chosen, seen], drawn_now, **QUIET)
        timer.tick(tick, [chosen, seen], drawn_now, **QUIET)
        answers.connect(answers_tab, timer, curves, tabs)
        evaluation.connect(evaluation_tab)
        question.connect(question_tab, timer)
        question.follow(answers.follow, answers.key, tabs)
        question.follow(evaluation.follow, evaluation.key, tabs)
        gr.on(
            [settings_tab.select, chosen.change],
            lambda c: told(lambda: pages.settings(shown(c))),
            [chosen],
            [settings],
            **QUIET,
        )
    return page


def _version(runs: Sequence[RunFolder]) -> str:
    return repr([run.version() for run in runs])
