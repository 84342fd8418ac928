import pytest

from vlm_r1.boxes import BoxMap
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import LabelledBox, Sample, Truth


def labelled(items):
    """`[(x1, y1, x2, y2), ...]`, or `[((x1, y1, x2, y2), label), ...]`, as records."""
    pairs = [item if isinstance(item[0], tuple) else (item, "") for item in items]
    return tuple(LabelledBox(box=box, label=label) for box, label in pairs)


def make_case(task, written, *, wrap=True, n_tokens=0, truncated=False, boxes=None, reward=None, columns=None, **truth):
    """A sample and the answer that a written text is for it."""
    sample = Sample(
        id="s1",
        question="q",
        truth=Truth(boxes=None if boxes is None else labelled(boxes), **truth),
        task=task,
        reward=reward,
        columns=columns or {},
    )
    raw = f"<think>t</think><answer>{written}</answer>" if wrap else written
    return sample, read_answer(raw, sample, BoxMap(), n_tokens=n_tokens, truncated=truncated)


@pytest.fixture
def case():
    return make_case
