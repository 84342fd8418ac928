"""How a question is put: the tasks, the templates, and the chat messages made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from vlm_r1.errors import ConfigError, DataError, nearest
from vlm_r1.prompts.kinds import KINDS, AnswerKind
from vlm_r1.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked and what kind of answer is read.

    `title` says it in a few words for a list of tasks. `question` is the default wording around a bare expression ("the
    red circle"): converters use it where the source holds expressions instead of questions. `hint` says in a few words
    what stands between the answer tags.

    Example: `TASKS["rec"].question.replace("{question}", "the red circle")`.
    """

    name: str
    title: str
    kind: AnswerKind
    question: str = "{question}"
    hint: str = ""


_BOX_HINT = 'The answer is one box in JSON: {"bbox_2d": [x1, y1, x2, y2]}.'
_BOXES_HINT = 'The answer is a JSON list of {"bbox_2d": [x1, y1, x2, y2], "label": "..."}, or None.'

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        # Wordings of rec and ovd: VLM-R1 (arXiv 2504.07615).
        Task(
            name="rec",
            title="Find one object: a box",
            kind=KINDS["box"],
            question="Please provide the bounding box coordinates of the region this sentence describes: {question}.",
            hint=_BOX_HINT,
        ),
        Task(
            name="reasoning",
            title="Find what answers a question: a box",
            kind=KINDS["box"],
            question="Please find the region that answers this question and give its bounding box: {question}",
            hint=_BOX_HINT,
        ),
        Task(
            name="ovd",
            title="Detect named objects: boxes",
            kind=KINDS["boxes"],
            question="Please carefully check the image and detect the following objects: {question}. "
            "Output each detected target's bbox coordinates in JSON format. "
            "If there are no such targets in the image, simply respond with None.",
            hint=_BOXES_HINT,
        ),
        Task(name="list", title="List objects: boxes", kind=KINDS["boxes"], question="{question}", hint=_BOXES_HINT),
        Task(
            name="count",
            title="Count: a number",
            kind=KINDS["number"],
            question="How many of these are in the image: {question}?",
            hint="A number.",
        ),
        Task(name="choice", title="Choose an option: a letter", kind=KINDS["choice"], hint="The letter of one option."),
        Task(name="yes_no", title="Yes or no", kind=KINDS["yes_no"], hint="Yes or no."),
        Task(name="number", title="A number", kind=KINDS["number"], hint="A number."),
        Task(name="math", title="Mathematics", kind=KINDS["math"], hint="A number or a LaTeX expression."),
        Task(name="text", title="Free text", kind=KINDS["text"], hint="A short text."),
        Task(
            name="ocr",
            title="Read text",
            kind=KINDS["text"],
            question="Read the text in the image. {question}",
            hint="The text as written.",
        ),
        Task(
            name="when",
            title="Find a moment of a video: an interval",
            kind=KINDS["interval"],
            question="When does this happen in the video: {question}?",
            hint="Two times in seconds: [start, end].",
        ),
        Task(
            name="gui",
            title="Where to click: a point",
            kind=KINDS["point"],
            question="Where do you click to do this: {question}?",
            hint="A point [x, y] or a box [x1, y1, x2, y2].",
        ),
    )
}

TEMPLATES: dict[str, str] = {
    "plain": "{question}",
    # The paper's wording.
    "r1": "{question} Output the thinking process in <think> </think> and final answer in <answer> </answer> tags.",
    # The wording the released VLM-R1 checkpoints were trained with, without and with the ending of their REC task.
    "reference": "{question} First output the thinking process in <think> </think> tags and then output the final "
    "answer in <answer> </answer> tags.",
    "qwen_rec": "{question} First output the thinking process in <think> </think> tags and then output the final "
    "answer in <answer> </answer> tags. Output the final answer in JSON format.",
    # With an environment: what it says of itself, and thoughts before each call.
    "r1_tools": "{question} {tools} Output the thinking process in <think> </think> tags before each call and before "
    "the answer, and the final answer in <answer> </answer> tags.",
    # For bare expressions and models that were never taught a format: the task's wording and hint are added.
    "r1_task": "{instruction} {hint} First output the thinking process in <think> </think> tags and then output the "
    "final answer in <answer> </answer> tags.",
}

_PLACEHOLDER = re.compile(r"\{(question|instruction|hint|tools)\}")


def task_of(sample: Sample) -> Task:
    """The row of `TASKS` that a sample names. Raises `DataError` for an unknown task."""
    try:
        return TASKS[sample.task]
    except KeyError:
        raise DataError(f'sample {sample.id}: unknown task "{sample.task}": {nearest(sample.task, TASKS)}') from None


def word_question(task: str, expression: str) -> str:
    """The default wording of a task around a bare expression. Raises `DataError` for an unknown task."""
    if task not in TASKS:
        raise DataError(f'unknown task "{task}": {nearest(task, TASKS)}')
    return TASKS[task].question.replace("{question}", expression)


def template_text(template: str) -> str:
    """The text of a template named in `TEMPLATES`, or the argument itself where it holds a placeholder.

    Placeholders: `{question}` (the sample's question as it stands), `{instruction}` (the question in the task's
    default wording), `{hint}` (the task's answer format), `{tools}` (what the environment says of itself). Raises
    `ConfigError` for an unknown name.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{question}" in template or "{instruction}" in template:
        return template
    raise ConfigError(
        f'prompt.template: "{template}" is neither a template nor a string with {{question}}: '
        f"{nearest(template, TEMPLATES)}"
    )


def build_question(sample: Sample, template: str, tools: str = "") -> str:
    """The user's text for a sample, `tools` where the template asks for them. With "plain" it is exactly
    `sample.question`.

    Raises `ConfigError` for an unknown template or one that asks for tools where there are none, and `DataError` for an
    unknown task.
    """
    text = template_text(template)
    if text == "{question}":
        return sample.question
    if "{tools}" in text and not tools:
        raise ConfigError("prompt.template: asks for {tools}, and there is no env; add env, or take another template")
    task = task_of(sample)
    values = {
        "question": sample.question,
        "instruction": task.question.replace("{question}", sample.question),
        "hint": task.hint,
        "tools": tools,
    }
    # One pass: braces inside the question (LaTeX, JSON) are never read as placeholders.
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], text)


def chat_messages(sample: Sample, template: str, tools: str = "") -> list[dict[str, Any]]:
    """One user turn in transformers' chat format: an image entry per image first, then the text.

    Before a frame of a video its time stands as a text. A sample without images has the text entry alone. The images
    themselves are handed to the processor separately, in the order of `sample.images`. Raises what `build_question`
    raises.
    """
    content: list[dict[str, Any]] = [{"type": "image"} for _ in sample.images]
    for place, seconds in reversed(list(enumerate(sample.times))):
        content.insert(place, {"type": "text", "text": f"<{seconds:.1f} seconds>"})
    content.append({"type": "text", "text": build_question(sample, template, tools)})
    return [{"role": "user", "content": content}]
