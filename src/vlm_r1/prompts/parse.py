"""What the model wrote, read one way: training and evaluation both call `read_answer`.

The rules:
- What counts is the last complete `<answer>` block; without one the answer is a failure. Where the model writes
  location tokens (PaliGemma), whose published checkpoints know no tags, a text without any tag counts as a whole.
- Inside it the last fenced block counts, else the whole. JSON is repaired, boxes may be floats.
- Malformed, reversed and empty boxes are dropped and counted, and are not predictions.
- Only None, null and [] say that nothing is there; any other unreadable answer is a failure.
- A hedged choice, number or yes/no ("A or B") is a failure.
- Of several boxes where one was asked for, rewards look at the first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_r1.boxes import BoxMap
from vlm_r1.prompts.kinds import Value
from vlm_r1.prompts.templates import task_of
from vlm_r1.records import Answer, ParseFailure, Sample, ToolCall

FAILURE_KINDS: dict[str, str] = {
    # Of the tags. The first three also leave nothing to read; the others are faults of format alone.
    "no_answer": "there is no <answer> tag",
    "unclosed_answer": "an <answer> tag is never closed",
    "stray_tag": "a closing tag has no opening one",
    "repeated_answer": "there is more than one <answer> block",
    "nested_tag": "a think or answer tag stands inside another block",
    "no_think": "there is no <think> block",
    "unclosed_think": "a <think> tag is never closed",
    "repeated_think": "there is more than one <think> block",
    "wrong_order": "the <answer> block comes before the <think> block",
    "text_outside": "there is text outside the think and answer blocks",
    # Of calls of tools, where there is an environment.
    "unclosed_tool": "a <tool> tag is never closed",
    "too_many_calls": "it ends with a call after its last",
    # Of what stands in the answer.
    "empty_answer": "the answer block is empty",
    "unreadable": "the answer cannot be read as what the task asks for",
    "no_valid_box": "every box in the answer is malformed, reversed or empty",
    "ambiguous": "the answer names more than one candidate",
}
"""Failure kind -> what it means: those of `Answer.failure` and those of `Blocks.fault`."""

END_OF_ANSWER = "</answer>"
START_OF_CALL, END_OF_CALL = "<tool>", "</tool>"
_CALLING = re.compile(r"\s*<think>.*?</think>\s*<tool>.*</tool>\s*", re.DOTALL)
_TAG = re.compile(r"<(/?)(think|answer)>")


def asked_in(text: str) -> str:
    """What stands in the call that a text ends with, as a person reads it; the text itself where it holds none."""
    return text.rpartition(START_OF_CALL)[2].removesuffix(END_OF_CALL).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The R1 parts of a text: its think block, the last complete answer block, and the first fault of format.

    Example: `extract_blocks("<think>a</think><answer>b</answer>")` has `think="a", answer="b", fault=None`.
    """

    think: str | None = None
    answer: str | None = None
    fault: str | None = None

    @property
    def well_formed(self) -> bool:
        """Exactly one think block, then exactly one answer block, and only white space around them."""
        return self.fault is None


def extract_blocks(raw: str) -> Blocks:
    """Find the blocks of a text in one pass over its tags; never raises.

    A complete block has an opening tag, a closing tag, and no tag of either kind between them; of several complete
    answers the last is kept, of several thoughts the first. `fault` is a key of `FAILURE_KINDS` or None.
    """
    tags = [(match.group(2), bool(match.group(1)), match.start(), match.end()) for match in _TAG.finditer(raw)]
    blocks: dict[str, list[str]] = {"think": [], "answer": []}
    for (name, closing, _, start), (next_name, next_closing, end, _) in itertools.pairwise(tags):
        if name == next_name and not closing and next_closing:
            blocks[name].append(raw[start:end])
    # A thought that quotes tags ("I will use <answer> tags") has no flat block; it ends where its last tag does.
    return Blocks(
        think=blocks["think"][0] if blocks["think"] else None,
        answer=blocks["answer"][-1] if blocks["answer"] else None,
        fault=_format_fault(raw, tags, blocks),
    )


def _format_fault(raw: str, tags: list[tuple[str, bool, int, int]], blocks: dict[str, list[str]]) -> str | None:
    """The first thing that keeps a text from the strict R1 shape, as a key of `FAILURE_KINDS`."""
    shape = [("/" if closing else "") + name for name, closing, _, _ in tags]
    if shape == ["think", "/think", "answer", "/answer"]:
        outside = raw[: tags[0][2]] + raw[tags[1][3] : tags[2][2]] + raw[tags[3][3] :]
        return "text_outside" if outside.strip() else None
    if "answer" not in shape:
        return "stray_tag" if "/answer" in shape else "no_answer"
    if not blocks["answer"]:
        return "nested_tag" if "/answer" in shape[shape.index("answer") :] else "unclosed_answer"
    for name in ("answer", "think"):
        opened, closed, complete = shape.count(name), shape.count("/" + name), len(blocks[name])
        if complete > 1:
            return f"repeated_{name}"
        if opened > closed:
            return f"unclosed_{name}"
        if opened < closed:
            return "stray_tag"
        if opened > complete:
            return "nested_tag"
    if not blocks["think"]:
        return "no_think"
    return "wrong_order" if shape[0] == "answer" else "nested_tag"


def read_answer(
    raw: str,
    sample: Sample,
    box_map: BoxMap,
    *,
    n_tokens: int = 0,
    truncated: bool = False,
    calls: Sequence[ToolCall] | None = None,
) -> Answer:
    """Read a model's text as an answer to a sample. Never raises on any text.

    `box_map` turns coordinates as the model writes them into pixels of the original image; `n_tokens` and
    `truncated` are kept on the answer for rewards that look at length. `calls` are what was asked of an environment,
    None without one: the answer is what stands behind the last. Raises `DataError` for an unknown task.
    """
    kind = task_of(sample).kind
    asking = "".join(call.text for call in calls or ())
    last = raw[len(asking) :]
    blocks = extract_blocks(last)
    text = last if box_map.loc and not _TAG.search(last) else blocks.answer
    value: Value = None
    failure: str | None = None
    dropped = 0
    if text is None:
        failure = blocks.fault if blocks.fault in ("unclosed_answer", "stray_tag", "nested_tag") else "no_answer"
        if calls is not None and START_OF_CALL in last:
            failure = "too_many_calls" if END_OF_CALL in last else "unclosed_tool"
    elif not text.strip():
        failure = "empty_answer"
    else:
        value, failure, dropped = kind.read(text, box_map, sample.question)
    found = [*(extract_blocks(call.text).think for call in calls or ()), blocks.think]
    thoughts = [thought for thought in found if thought is not None]
    return Answer(
        raw=raw,
        think="\n".join(thoughts) if thoughts else None,
        text=None if text is None else text.strip(),
        value=value,
        failure=None if failure is None else ParseFailure(kind=failure, detail=FAILURE_KINDS[failure]),
        well_formed=blocks.well_formed and all(_CALLING.fullmatch(call.text) for call in calls or ()),
        dropped=dropped,
        n_tokens=n_tokens,
        truncated=truncated,
        calls=tuple(calls or ()),
    )
