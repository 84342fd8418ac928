"""The page itself: where its parts stand, and which call each of them makes."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from vlm_r1.errors import UserError
from vlm_r1.play.cards import Column
from vlm_r1.play.pictures import Pictures, example_scenes
from vlm_r1.play.playground import CHOSEN_REWARDS, LONGEST_ANSWER, MOST_SAMPLES, Form, Playground
from vlm_r1.play.truth import written
from vlm_r1.prompts.templates import TASKS, TEMPLATES
from vlm_r1.records import Sample
from vlm_r1.report.web import css_of

TASK_NAMES = {
    "rec": "Find one object: a box (rec)",
    "reasoning": "Find what answers a question: a box (reasoning)",
    "ovd": "Detect named objects: boxes (ovd)",
    "list": "List objects: boxes (list)",
    "count": "Count: a number (count)",
    "choice": "Choose an option: a letter (choice)",
    "yes_no": "Yes or no (yes_no)",
    "number": "A number (number)",
    "math": "Mathematics (math)",
    "text": "Free text (text)",
    "ocr": "Read text (ocr)",
    "gui": "Where to click: a point (gui)",
}
_ANNOUNCE = "element.setAttribute('role', 'status');"
_QUIETLY: Any = {"show_progress": "hidden", "api_visibility": "private"}

_EMPTY = "Answers appear here."

Updates = dict[Any, Any]
"""Component -> its new value or settings."""


def build_page(playground: Playground) -> gr.Blocks:
    """The page over a playground; `report.web.launch` serves it."""
    names = [speaker.name for speaker in playground.speakers]
    samples = example_scenes()
    scenes = _scene_files(samples, playground.pictures.folder / "scenes")
    with gr.Blocks(title="VLM-R1 playground", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_head(names), apply_default_css=False, elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320, elem_id="form"):
                parts = _picture_parts(scenes, playground.pictures)
                parts |= _question_parts(samples[0]) | _sampling_parts() | _button_parts()
                parts |= _further_parts()
            with gr.Column(scale=7, min_width=320), gr.Row(equal_height=False):
                columns = [
                    gr.HTML(
                        Column(name=name, note=_EMPTY).html(),
                        elem_id=f"answers-{i + 1}",
                        elem_classes="answers",
                        min_width=320,
                        apply_default_css=False,
                    )
                    for i, name in enumerate(names)
                ]
        found = SimpleNamespace(**parts, columns=columns)
        _connect_asking(page, found, playground)
        _connect_pictures(found, playground.pictures, scenes, samples)
    return page


def _head(names: Sequence[str]) -> str:
    models = " and ".join(f"<b>{html.escape(name)}</b>" for name in names)
    return f"<h1>Playground</h1><p>{models} on this computer: pictures and questions stay here.</p>"


def play_css() -> str:
    """The rules of the page, behind those that all pages share."""
    return css_of(_template("play.css"))


def _template(name: str) -> str:
    return (resources.files("vlm_r1.play") / "templates" / name).read_text(encoding="utf-8")


def status(text: str, *, error: bool = False) -> str:
    """The line below the buttons."""
    return f'<p class="{"error" if error else "told"}">{html.escape(text)}</p>'


def _scene_files(samples: Sequence[Sample], folder: Path) -> list[tuple[str, str]]:
    """The examples as (file, caption)."""
    folder.mkdir()
    found = []
    for number, sample in enumerate(samples):
        path = folder / f"scene-{number + 1}.png"
        sample.images[0].open().save(path)
        found.append((str(path), sample.question))
    return found


def _picture_parts(scenes: list[tuple[str, str]], pictures: Pictures) -> dict[str, Any]:
    return {
        "picture": gr.Image(
            scenes[0][0],
            label="Picture",
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            height=250,
            buttons=["fullscreen"],
            alt_text="The picture that the question is about",
            elem_id="picture",
        ),
        "scenes": gr.Gallery(
            scenes,
            label="Generated scenes, each with a question and its truth",
            show_label=False,
            columns=6,
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="scenes",
        ),
        "listed": gr.Dropdown(
            pictures.listed(),
            value=None,
            label=f"Or a picture of {pictures.image_root}",
            info="Type to search, or write a path in this folder.",
            allow_custom_value=True,
            visible=pictures.image_root is not None,
            elem_id="folder",
        ),
        "pen": gr.HTML("", js_on_load=_template("box.js"), elem_id="pen"),
    }


def _question_parts(sample: Sample) -> dict[str, Any]:
    return {
        "task": gr.Dropdown(
            [(TASK_NAMES.get(name, name), name) for name in TASKS], value=sample.task, label="Task", elem_id="task"
        ),
        "question": gr.Textbox(sample.question, label="Question", lines=1, max_lines=8, elem_id="question"),
        "truth": gr.Textbox(
            written(sample.truth),
            label="Truth (optional)",
            info="For rewards. A box is x1, y1, x2, y2 in pixels: type it, or draw it on the picture.",
            lines=1,
            max_lines=8,
            elem_id="truth",
        ),
    }


def _sampling_parts() -> dict[str, Any]:
    parts: dict[str, Any] = {
        "greedy": gr.Checkbox(True, label="Greedy: one answer, the likeliest tokens", elem_id="greedy")
    }
    with gr.Row():
        parts["n"] = gr.Slider(
            1, MOST_SAMPLES, 4, step=1, label="Samples", interactive=False, min_width=140, elem_id="samples"
        )
        parts["temperature"] = gr.Slider(
            0.05, 2, 1, step=0.05, label="Temperature", interactive=False, min_width=140, elem_id="temperature"
        )
    return parts


def _further_parts() -> dict[str, Any]:
    parts: dict[str, Any] = {}
    with gr.Accordion("More", open=False, elem_id="more"):
        with gr.Row():
            # A blank number field would send 0.
            parts["seed"] = gr.Textbox(
                "", label="Seed", info="Blank: another each time.", min_width=140, elem_id="seed"
            )
            parts["limit"] = gr.Number(
                1024, label="Longest answer", info=f"Tokens, up to {LONGEST_ANSWER}.", min_width=140, elem_id="limit"
            )
        parts["template"] = gr.Dropdown(
            [("as the model was trained", ""), *((name, name) for name in TEMPLATES)],
            value="",
            label="Template",
            info="r1_task words the question for a model that was not trained here.",
            allow_custom_value=True,
            elem_id="template",
        )
        parts["rewards"] = gr.Dropdown(
            CHOSEN_REWARDS,
            value=[],
            multiselect=True,
            label="Rewards",
            info="None chosen: the task's own, and format.",
            elem_id="rewards",
        )
    return parts


def _button_parts() -> dict[str, Any]:
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", scale=3, min_width=120, elem_id="ask")
        stop = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="stop")
    return {
        "ask": ask,
        "stop": stop,
        "status": gr.HTML(status("Ready."), js_on_load=_ANNOUNCE, apply_default_css=False, elem_id="status"),
    }


def _connect_asking(page: gr.Blocks, parts: Any, playground: Playground) -> None:
    """Ask and Stop. The picture arrives as the page sends it: gradio would open it first, and fail without a word."""
    filled = {field.name: getattr(parts, field.name) for field in fields(Form)}

    def ask(request: gr.Request, *values: Any) -> Iterator[Updates]:
        form = Form(**dict(zip(filled, values, strict=True)))
        for view in playground.ask(form, str(request.session_hash)):
            changed = {c: column.html() for c, column in zip(parts.columns, view.columns, strict=True) if column}
            yield changed | {
                parts.status: status(view.status, error=view.error),
                parts.ask: gr.update(interactive=not view.busy),
                parts.stop: gr.update(interactive=view.busy),
            }

    def stop(request: gr.Request) -> None:
        playground.stop(str(request.session_hash))

    gr.on(
        [parts.ask.click, parts.question.submit],
        ask,
        list(filled.values()),
        [parts.status, parts.ask, parts.stop, *parts.columns],
        preprocess=False,
        concurrency_limit=1,
        concurrency_id="model",
        **_QUIETLY,
    )
    parts.stop.click(stop, queue=False, **_QUIETLY)
    page.unload(stop)
    parts.greedy.change(
        lambda greedy: (gr.update(interactive=not greedy),) * 2,
        parts.greedy,
        [parts.n, parts.temperature],
        queue=False,
        **_QUIETLY,
    )


def _connect_pictures(parts: Any, pictures: Pictures, scenes: Sequence[Any], samples: Sequence[Sample]) -> None:
    """Pictures that are uploaded or picked, and clicks on them."""

    def pick_scene(event: gr.SelectData) -> Updates:
        sample = samples[int(event.index)]
        return {
            parts.picture: scenes[int(event.index)][0],
            parts.task: sample.task,
            parts.question: sample.question,
            parts.truth: written(sample.truth),
            parts.status: status("Ready."),
        }

    def pick_listed(name: str | None) -> Updates:
        if not name:
            return {parts.status: gr.skip()}
        try:
            path = pictures.from_root(name)
        except UserError as error:
            return {parts.status: status(str(error), error=True)}
        return {parts.picture: str(path), parts.truth: "", parts.status: status(name)}

    def uploaded(value: Any) -> Updates:
        try:
            _, image = pictures.uploaded(value)
        except UserError as error:
            return {parts.picture: None, parts.truth: "", parts.status: status(str(error), error=True)}
        return {parts.truth: "", parts.status: status(f"{image.width} x {image.height} pixels")}

    def drawn(task: str, truth: str, event: gr.EventData) -> Updates:
        box = ", ".join(str(int(side)) for side in event.box)
        if len(event.box) == 2:
            return {parts.status: status(f"One corner at {box}: click the opposite one.")}
        several = TASKS[task].kind == "boxes" and truth.strip()
        return {
            parts.truth: f"{truth.rstrip()}\n{box}" if several else box,
            parts.status: status(f"True box {box}"),
        }

    changed = [parts.picture, parts.truth, parts.status]
    every = [*changed, parts.task, parts.question]
    parts.scenes.select(pick_scene, None, every, queue=False, trigger_mode="always_last", **_QUIETLY)
    parts.listed.input(pick_listed, parts.listed, changed, queue=False, **_QUIETLY)
    parts.picture.upload(uploaded, parts.picture, changed, preprocess=False, queue=False, **_QUIETLY)
    parts.picture.clear(lambda: "", None, parts.truth, queue=False, **_QUIETLY)
    parts.pen.select(drawn, [parts.task, parts.truth], changed[1:], queue=False, trigger_mode="multiple", **_QUIETLY)
