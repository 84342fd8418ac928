"""The row shapes people have, each brought to one `RawRow`: question, images, solution, and what else there is.

Accepted: `{"image" | "images", "problem", "solution"}` (ours, R1-V, EasyR1 with `answer`), LLaVA and VLM-R1
(`conversations`), TRL (`prompt`), verl (`prompt` and `reward_model`), ms-swift (`messages` and `objects`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm_r1.errors import Fault, RowError, shown

MISSING = object()
"""Stands for a solution that a row does not have (null is a solution: nothing is there)."""

_QUESTION_KEYS = ("problem", "question", "query", "instruction")
_SOLUTION_KEYS = ("solution", "answer", "ground_truth", "gt", "response")
_TAG = re.compile(r"[ \t]*<image>\n?[ \t]*")
_ROLES = {"human": "user", "gpt": "assistant"}
# VLM-R1's `accu_reward_method` values and the rewards that measure the same here; "default" leaves the choice open.
ACCU_REWARDS: dict[str, tuple[str | None, str | None]] = {
    "default": (None, None),
    "mcq": ("choice", "choice"),
    "yes_no": ("yes_no", "yes_no"),
    "llm": ("llm_judge", "text"),
    "math": ("math", "math"),
    "all_match": ("exact_text", "text"),
    "map": ("od_map", "ovd"),
    "od_ap": ("od_map", "ovd"),
    "od_ap50": ("od_ap50", "ovd"),
    "odLength": ("od_length", "ovd"),
    "weighted_sum": ("weighted_detection", "ovd"),
}
"""VLM-R1's reward method -> (reward, task)."""


@dataclass(slots=True, kw_only=True)
class RawRow:
    """One row, its values found but not checked.

    `box_scale` is "pixels", or "norm1" or "norm1000" where the solution's boxes are shares or thousandths of the
    image; `tags` counts the `<image>` tags taken out of the question.

    Example: `RawRow(question="the red circle", images=["1.png"], solution=[1, 2, 3, 4])`.
    """

    question: Any
    images: list[Any] = field(default_factory=list)
    video: Any = None
    times: Any = None
    fps: Any = None
    solution: Any = MISSING
    task: Any = None
    reward: Any = None
    think: Any = None
    source: Any = None
    id: Any = None
    tags: int = 0
    box_scale: str = "pixels"
    columns: dict[str, Any] = field(default_factory=dict)


def read_shape(row: Mapping[str, Any]) -> RawRow:
    """Bring a row of any accepted shape to a `RawRow`. Raises `RowError` where it has none of the shapes."""
    if row.get("conversations") is not None:
        raw = _llava(row)
    elif row.get("messages") is not None:
        raw = _swift(row)
    elif row.get("prompt") is not None:
        raw = _chat_prompt(row)
    else:
        raw = _plain(row)
    method = row.get("accu_reward_method")
    if isinstance(method, str):
        raw.reward, task = ACCU_REWARDS.get(method, (method, None))
        raw.task = task
    elif method is not None:
        raw.reward = method
    raw.task = row["task"] if row.get("task") is not None else raw.task
    raw.reward = row["reward"] if row.get("reward") is not None else raw.reward
    raw.think = row["think"] if row.get("think") is not None else raw.think
    raw.id = row["id"] if row.get("id") is not None else raw.id
    raw.source = next((row[key] for key in ("source", "data_source") if row.get(key) is not None), raw.source)
    raw.images = _images(row) or raw.images
    raw.video, raw.times, raw.fps = row.get("video"), row.get("times"), row.get("fps")
    if isinstance(raw.question, str):
        raw.tags += raw.question.count("<image>")
        raw.question = _TAG.sub(" ", raw.question).strip() if "<image>" in raw.question else raw.question.strip()
    used = {*_QUESTION_KEYS, *_SOLUTION_KEYS, "image", "images", "conversations", "messages", "prompt", "objects"}
    used |= {"task", "reward", "accu_reward_method", "think", "id", "source", "data_source"}
    used |= {"video", "times", "fps"} if raw.video is not None else set()
    raw.columns |= {key: value for key, value in row.items() if key not in used}
    return raw


def _fault(kind: str, what: str, remedy: str) -> RowError:
    return RowError([Fault(kind=kind, what=what, remedy=remedy)])


def _images(row: Mapping[str, Any]) -> list[Any]:
    images = []
    for key in ("image", "images"):
        value = row.get(key)
        if isinstance(value, (list, tuple)):
            images += list(value)
        elif value is not None:
            images.append(value)
    return images


def _plain(row: Mapping[str, Any]) -> RawRow:
    key = next((key for key in _QUESTION_KEYS if key in row), None)
    if key is None:
        keys = ", ".join(map(str, row)) or "none"
        raise _fault("question", f"the row has no question (keys: {keys})", 'Add "problem" and "solution"')
    return RawRow(question=row[key], solution=_solution(row))


def _solution(row: Mapping[str, Any]) -> Any:
    return next((row[key] for key in _SOLUTION_KEYS if key in row), MISSING)


def _turns(messages: Any, key: str) -> tuple[str, Any, str | None, list[Any]]:
    """`(question, answer or MISSING, system text, images in the content)` of a one-turn conversation."""
    remedy = 'Write [{"role": "user", "content": "..."}], one question a row'
    if not isinstance(messages, (list, tuple)) or not messages:
        raise _fault("turns", f"{key} is {shown(messages)}, not a list of messages", remedy)
    texts: dict[str, Any] = {}
    images: list[Any] = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise _fault("turns", f"{key} holds {shown(message)}, which is not a message", remedy)
        role = message.get("role", message.get("from"))
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        content = message.get("content", message.get("value"))
        if role not in ("system", "user", "assistant"):
            raise _fault("turns", f"{key} has a message with the role {shown(role)}", remedy)
        if role in texts:
            raise _fault("turns", f"{key} has more than one {role} message", remedy)
        if role == "assistant" and "user" not in texts:
            raise _fault("turns", f"{key} has an answer before its question", remedy)
        texts[role] = content if role == "assistant" and not _is_parts(content) else _text_of(content, images)
    if not isinstance(texts.get("user"), str):
        raise _fault("question", f"{key} has no user message with text", remedy)
    return texts["user"], texts.get("assistant", MISSING), texts.get("system"), images


def _is_parts(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and any(isinstance(p, Mapping) and "type" in p for p in content)


def _text_of(content: Any, images: list[Any]) -> Any:
    """The text of a message; images among its parts are appended to `images`."""
    if not _is_parts(content):
        return content
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, Mapping):
            value = next((part[key] for key in ("image", "image_url", "path") if part.get(key) is not None), None)
            value = value.get("url") if isinstance(value, Mapping) and "url" in value else value
            if value is not None:
                images.append(value)
    return "\n".join(texts)


def _with_system(raw: RawRow, system: str | None) -> RawRow:
    # The template states the answer format; a second statement of it would contradict. It is kept for plugins.
    if system is not None:
        raw.columns["system"] = system
    return raw


def _llava(row: Mapping[str, Any]) -> RawRow:
    question, answer, system, images = _turns(row["conversations"], "conversations")
    solution = answer if answer is not MISSING else _solution(row)
    return _with_system(RawRow(question=question, images=images, solution=solution), system)


def _chat_prompt(row: Mapping[str, Any]) -> RawRow:
    prompt = row["prompt"]
    if isinstance(prompt, str):
        answer, system = MISSING, None
        raw = RawRow(question=prompt, solution=_solution(row))
    else:
        question, answer, system, images = _turns(prompt, "prompt")
        raw = RawRow(question=question, images=images, solution=_solution(row))
    model = row.get("reward_model")
    if isinstance(model, Mapping) and "ground_truth" in model:
        raw.solution = model["ground_truth"]
    elif raw.solution is MISSING:
        raw.solution = answer
    extra = row.get("extra_info")
    if isinstance(extra, Mapping) and extra.get("index") is not None:
        raw.id = f"{extra.get('split', 'row')}-{extra['index']}"
    return _with_system(raw, system)


def _swift(row: Mapping[str, Any]) -> RawRow:
    question, answer, system, images = _turns(row["messages"], "messages")
    raw = RawRow(question=question, images=images, solution=_solution(row))
    objects = row.get("objects")
    if isinstance(objects, Mapping) and objects.get("bbox") is not None:
        _fill_objects(raw, objects, answer)
    elif raw.solution is MISSING:
        raw.solution = answer
    return _with_system(raw, system)


def _fill_objects(raw: RawRow, objects: Mapping[str, Any], answer: Any) -> None:
    """Put ms-swift's objects in the place of `<ref-object>` and `<bbox>`: first the question's, then the answer's."""
    refs, boxes = objects.get("ref") or [], objects["bbox"]
    if not isinstance(refs, (list, tuple)) or not isinstance(boxes, (list, tuple)):
        raise _fault(
            "field", f"objects is {shown(dict(objects))}", 'Write {"ref": ["cat"], "bbox": [[x1, y1, x2, y2]]}'
        )
    scale = objects.get("bbox_type") or "real"
    if scale not in ("real", "norm1", "norm1000"):
        raise _fault("field", f"objects.bbox_type is {shown(scale)}", "Use real, norm1 or norm1000")
    raw.box_scale = "pixels" if scale == "real" else scale
    asked_refs, asked_boxes = raw.question.count("<ref-object>"), raw.question.count("<bbox>")
    for ref in refs[:asked_refs]:
        raw.question = raw.question.replace("<ref-object>", str(ref), 1)
    for box in boxes[:asked_boxes]:
        raw.question = raw.question.replace("<bbox>", str(box), 1)
    if raw.solution is not MISSING:
        return
    left = list(boxes[asked_boxes:])
    labels = list(refs[asked_refs:])
    if len(labels) != len(left):
        labels = list(refs) if len(refs) == len(left) else []
    if not labels and len(set(map(str, refs))) == 1:
        labels = [refs[0]] * len(left)
    labels = labels or [""] * len(left)
    single = len(left) == 1 and (not isinstance(answer, str) or "[" not in answer)
    items = [{"bbox": box, "label": label} for box, label in zip(left, labels, strict=True)]
    raw.solution = items[0] if single else items
