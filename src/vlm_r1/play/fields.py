"""The fields of the page, in the order in which they stand."""

from __future__ import annotations

import html
from importlib import resources
from typing import Any

import gradio as gr

from vlm_r1.play.images import Images
from vlm_r1.play.playground import CHOSEN_REWARDS, MAX_ANSWER_TOKENS, MAX_SAMPLES
from vlm_r1.play.truth import written
from vlm_r1.prompts.templates import TASKS, TEMPLATES
from vlm_r1.records import Sample

_ANNOUNCE = "element.setAttribute('role', 'status');"

Parts = dict[str, Any]
"""Name -> component; the fields of `playground.Form` are among the names."""


def image_parts(scenes: list[tuple[str, str]], images: Images) -> Parts:
    """Where an image is uploaded, pasted, dropped, picked or drawn on. `scenes` are (file, caption)."""
    return {
        "image": gr.Image(
            scenes[0][0],
            label="Image",
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            height=200,
            buttons=["fullscreen"],
            alt_text="The image that the question is about",
            elem_id="image",
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
            images.listed(),
            value=None,
            label=f"Or an image of {images.image_root and images.image_root.resolve().name}: type to search, or a path",
            allow_custom_value=True,
            visible=images.image_root is not None,
            elem_id="folder",
        ),
        "pen": gr.HTML("", js_on_load=asset_text("box.js"), elem_id="pen"),
    }


def question_parts(sample: Sample) -> Parts:
    """Task and question, filled in with those of `sample`."""
    return {
        "task": gr.Dropdown(
            [(f"{task.title} ({name})", name) for name, task in TASKS.items()],
            value=sample.task,
            label="Task",
            elem_id="task",
        ),
        "question": gr.Textbox(sample.question, label="Question", lines=1, max_lines=8, elem_id="question"),
    }


def truth_parts(sample: Sample) -> Parts:
    """The truth, filled in with that of `sample`."""
    return {
        "truth": gr.Textbox(
            written(sample.truth),
            label="Truth (optional)",
            info="For rewards. A box is x1, y1, x2, y2 in pixels: type it, or draw it on the image.",
            lines=1,
            max_lines=8,
            elem_id="truth",
        ),
    }


def sampling_parts() -> Parts:
    """One greedy answer, or several samples."""
    parts: Parts = {"greedy": gr.Checkbox(True, label="Greedy: one answer, the likeliest tokens", elem_id="greedy")}
    with gr.Row():
        parts["n"] = gr.Slider(
            1, MAX_SAMPLES, 4, step=1, label="Samples", interactive=False, min_width=165, elem_id="samples"
        )
        parts["temperature"] = gr.Slider(
            0.05, 2, 1, step=0.05, label="Temperature", interactive=False, min_width=165, elem_id="temperature"
        )
    return parts


def further_parts() -> Parts:
    """What is rarely changed, folded away."""
    parts: Parts = {}
    with gr.Accordion("More", open=False, elem_id="more"):
        with gr.Row():
            # A blank number field would send 0.
            parts["seed"] = gr.Textbox(
                "", label="Seed", info="Blank: another each time.", min_width=140, elem_id="seed"
            )
            parts["limit"] = gr.Number(
                1024, label="Longest answer", info=f"Tokens, up to {MAX_ANSWER_TOKENS}.", min_width=140, elem_id="limit"
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


def button_parts() -> Parts:
    """Ask, Stop, and the line that tells how it goes."""
    with gr.Row():
        ask = gr.Button("Ask", variant="primary", scale=3, min_width=120, elem_id="ask")
        stop = gr.Button("Stop", interactive=False, scale=1, min_width=80, elem_id="stop")
    return {
        "ask": ask,
        "stop": stop,
        "status": gr.HTML(status("Ready."), js_on_load=_ANNOUNCE, apply_default_css=False, elem_id="status"),
    }


def status(text: str, *, error: bool = False) -> str:
    """The line below the buttons."""
    return f'<p class="{"error" if error else "told"}">{html.escape(text)}</p>'


def asset_text(name: str) -> str:
    """A file beside this module, under templates/."""
    return (resources.files("vlm_r1.play") / "templates" / name).read_text(encoding="utf-8")
