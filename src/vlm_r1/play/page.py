"""The page itself: where its parts stand, and which call each of them makes."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from vlm_r1.errors import UserError
from vlm_r1.play.cards import Column
from vlm_r1.play.fields import (
    asset_text,
    button_parts,
    further_parts,
    image_parts,
    question_parts,
    sampling_parts,
    status,
    truth_parts,
)
from vlm_r1.play.images import Images, example_scenes
from vlm_r1.play.playground import Form, Playground
from vlm_r1.play.truth import written
from vlm_r1.prompts.kinds import KINDS
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import Sample
from vlm_r1.report.web import css_of

_QUIETLY: Any = {"show_progress": "hidden", "api_visibility": "private"}

_EMPTY = "Answers appear here."

Updates = dict[Any, Any]
"""Component -> its new value or settings."""


def build_page(playground: Playground) -> gr.Blocks:
    """The page over a playground; `report.web.launch` serves it."""
    names = [speaker.name for speaker in playground.speakers]
    samples = example_scenes()
    scenes = _scene_files(samples, playground.images.folder / "scenes")
    empty = [Column(name=name, note=_EMPTY).html() for name in names]
    with gr.Blocks(title="VLM-R1 playground", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_head(names), apply_default_css=False, elem_id="head")
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320, elem_id="form"):
                parts = image_parts(scenes, playground.images)
                parts |= question_parts(samples[0]) | button_parts()
                parts |= truth_parts(samples[0]) | sampling_parts() | further_parts()
            with gr.Column(scale=7, min_width=320), gr.Row(equal_height=False):
                columns = [
                    gr.HTML(
                        empty[i],
                        elem_id=f"answers-{i + 1}",
                        elem_classes="answers",
                        min_width=320,
                        apply_default_css=False,
                    )
                    for i, name in enumerate(names)
                ]
        found = SimpleNamespace(**parts, columns=columns)
        _connect_asking(page, found, playground)

        def cleared(session: str) -> Updates:
            """No answers beside an image that they are not about; those that are being written say which theirs is."""
            return {} if playground.is_asked(session) else dict(zip(columns, empty, strict=True))

        _connect_images(found, playground.images, scenes, samples, cleared)
    return page


def _head(names: Sequence[str]) -> str:
    models = " and ".join(f"<b>{html.escape(name)}</b>" for name in names)
    return f"<h1>Playground</h1><p>{models} on this computer: images and questions stay here.</p>"


def play_css() -> str:
    """The rules of the page, behind those that all pages share."""
    return css_of(asset_text("play.css"))


def _scene_files(samples: Sequence[Sample], folder: Path) -> list[tuple[str, str]]:
    """The examples as (file, caption)."""
    folder.mkdir()
    found = []
    for number, sample in enumerate(samples):
        path = folder / f"scene-{number + 1}.png"
        sample.images[0].open().save(path)
        found.append((str(path), sample.question))
    return found


def _connect_asking(page: gr.Blocks, parts: Any, playground: Playground) -> None:
    """Ask and Stop. The image arrives as the page sends it: gradio would open it first, and fail without a word."""
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


def _connect_images(
    parts: Any,
    images: Images,
    scenes: Sequence[Any],
    samples: Sequence[Sample],
    cleared: Callable[[str], Updates],
) -> None:
    """Images that are uploaded or picked, and clicks on them; `cleared` takes the answers of a session away."""

    def pick_scene(request: gr.Request, event: gr.SelectData) -> Updates:
        sample = samples[int(event.index)]
        return cleared(str(request.session_hash)) | {
            parts.image: scenes[int(event.index)][0],
            parts.task: sample.task,
            parts.question: sample.question,
            parts.truth: written(sample.truth),
            parts.status: status("Ready."),
        }

    def pick_listed(name: str | None, request: gr.Request) -> Updates:
        if not name:
            return {parts.status: gr.skip()}
        try:
            path = images.from_root(name)
        except UserError as error:
            return {parts.status: status(str(error), error=True)}
        return cleared(str(request.session_hash)) | {
            parts.image: str(path),
            parts.truth: "",
            parts.status: status(name),
        }

    def uploaded(value: Any, request: gr.Request) -> Updates:
        empty = cleared(str(request.session_hash))
        try:
            _, image = images.uploaded(value)
        except UserError as error:
            return empty | {parts.image: None, parts.truth: "", parts.status: status(str(error), error=True)}
        return empty | {parts.truth: "", parts.status: status(f"{image.width} x {image.height} pixels")}

    def removed(request: gr.Request) -> Updates:
        return cleared(str(request.session_hash)) | {parts.truth: ""}

    def drawn(task: str, truth: str, event: gr.EventData) -> Updates:
        box = ", ".join(str(int(side)) for side in event.box)
        if len(event.box) == 2:
            return {parts.status: status(f"One corner at {box}: click the opposite one.")}
        several = TASKS[task].kind is KINDS["boxes"] and truth.strip()
        return {
            parts.truth: f"{truth.rstrip()}\n{box}" if several else box,
            parts.status: status(f"True box {box}"),
        }

    changed = [parts.image, parts.truth, parts.status, *parts.columns]
    every = [*changed, parts.task, parts.question]
    parts.scenes.select(pick_scene, None, every, queue=False, trigger_mode="always_last", **_QUIETLY)
    parts.listed.input(pick_listed, parts.listed, changed, queue=False, **_QUIETLY)
    parts.image.upload(uploaded, parts.image, changed, preprocess=False, queue=False, **_QUIETLY)
    parts.image.clear(removed, None, [parts.truth, *parts.columns], queue=False, **_QUIETLY)
    parts.pen.select(drawn, [parts.task, parts.truth], changed[1:3], queue=False, trigger_mode="multiple", **_QUIETLY)
