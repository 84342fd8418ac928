"""The page: a tab for each thing one looks at, and a timer that shows what the runs have written since."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from vlm_r1.view import pages
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.history import Index
from vlm_r1.view.parts import QUIET, drawn, told
from vlm_r1.view.tab_answers import AnswersTab
from vlm_r1.view.tab_evaluation import EvaluationTab
from vlm_r1.view.tab_question import QuestionTab

SECONDS = 2.0
"""Between two looks at the run folders."""


def build(runs: Sequence[RunFolder]) -> gr.Blocks:
    """The page over some runs, whose names differ."""
    by_name = {run.name: run for run in runs}
    names = list(by_name)
    indices = {name: Index(run) for name, run in by_name.items()}

    def shown(chosen: list[str] | None) -> list[RunFolder]:
        return [by_name[name] for name in names if name in (chosen or names)]

    def fresh(chosen: list[str]) -> tuple[str, str, tuple[str, str]]:
        kept, version = shown(chosen), _version(runs)
        head = told(lambda: pages.head(kept))
        return (head, told(lambda: pages.training(kept)), (version, head))

    def tick(chosen: list[str], seen: tuple[str, str]) -> tuple[object, ...]:
        if _version(runs) != seen[0]:
            return fresh(chosen)
        head = told(lambda: pages.head(shown(chosen)))
        return (gr.skip(),) * 3 if head == seen[1] else (head, gr.skip(), (seen[0], head))

    with gr.Blocks(title=f"VLM-R1: {', '.join(names)}", analytics_enabled=False, fill_width=True) as page:
        head = drawn("head")
        chosen = gr.CheckboxGroup(
            names, value=names, label="Runs", visible=len(names) > 1, elem_classes="vr-bare", elem_id="runs"
        )
        seen = gr.State(("", ""))
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

        gr.on([page.load, chosen.change], fresh, [chosen], [head, curves, seen], **QUIET)
        timer.tick(tick, [chosen, seen], [head, curves, seen], **QUIET)
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
