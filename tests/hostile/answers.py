"""What a model writes: any text at all, which the parser reads or calls unreadable, and never refuses."""

import json

from hypothesis import strategies as st

from hostile import Case
from vlm_r1.boxes import BoxMap
from vlm_r1.prompts.parse import FAILURE_KINDS, read_answer
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import LabelledBox, Sample, Truth
from vlm_r1.report.images import Album
from vlm_r1.runtime.rows import answer_row

TRUTH = Truth(boxes=(LabelledBox(box=(1, 2, 3, 4), label="cat"),), text="a. x b. y", choice="B", number=4.0)


def inside(text: str) -> str:
    """The text as the answer of the R1 template."""
    return f"<think>{text}</think><answer>{text}</answer>"


def box(label: str = '"cat"', sides: str = "1, 2, 3, 4") -> str:
    return f'[{{"bbox_2d": [{sides}], "label": {label}}}]'


LONG = 20_000
CASES = [
    Case(name, inside(text), None)
    for name, text in {
        "nothing": "",
        "half a character in a label": box(r'"\ud83d"'),
        "the other half, in quotes of Python": box(r'"\udd2a"').replace('"', "'"),
        "a label that is a list": box("[[]]"),
        "a huge number": box(sides="9" * 5_000 + ", 1, 2, 3"),
        "numbers that are not finite": box(sides="NaN, -Infinity, 1e999, 3"),
        "a zero byte": "\0" + box('"\0"'),
        "opening brackets": "[" * LONG,
        "opening braces": '{"a":' * LONG,
        "opening tags": "<answer>" * LONG,
        "fences": "```" * LONG,
        "boxes": box() * (LONG // 20),
        "digits": "1" * LONG,
        "signs": "-" * LONG + "+" * LONG,
        "fractions": "\\frac{" * LONG,
        "letters that grow in capitals": "\u0390\ufb03" * LONG,
        "white space": " \n\t\u2028" * LONG,
        "placeholders": "<|image_pad|><loc0001>" * (LONG // 10),
    }.items()
]


def _read(task: str, text: str) -> None:
    """The answer, and what becomes of it in a table and on a page."""
    sample = Sample(id="0", question="a. x b. y", truth=TRUTH, task=task)
    answer = read_answer(text, sample, BoxMap(x=0.5, y=2.0), n_tokens=len(text))
    assert (answer.value is None) == (answer.failure is not None)
    assert answer.failure is None or answer.failure.kind in FAILURE_KINDS
    json.dumps(answer_row(sample, answer), ensure_ascii=False).encode("utf-8")
    boxes = answer.value if isinstance(answer.value, tuple) else ()
    for stroke in Album().view(None, (640, 480), TRUTH.boxes or (), boxes).strokes:
        stroke.label.encode("utf-8")


def _door(task: str):
    return lambda content, folder: _read(task, content)


DOORS = {task: _door(task) for task in sorted(TASKS)}
OTHERWISE: dict[str, str | None] = {}

PIECES = [
    *(
        "[1,2,30,40]",
        '{"bbox_2d":',
        '"label": "cat"}',
        '"\\ud83d"',
        "[",
        "]",
        "{",
        "}",
        ",",
        "None",
        "```json\n",
        "```",
    ),
    *("4", "-4", "1e999", "NaN", "\\frac{1}{2}", "\\boxed{", "\\sqrt{", "(", ")", "$", "yes", "no", "B)", "because"),
    *("<answer>", "</answer>", "<think>", "</think>", "%", "é", "٣", "½", "\0", "\n", " ", "'", '"', "<loc0012>" * 4),
]
CONTENTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=25).map("".join).map(inside))
EXAMPLES = 50
