"""A call of a tool, as a model writes it: `<tool>{"name": "zoom", "box": [x1, y1, x2, y2]}</tool>`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_r1.errors import shown
from vlm_r1.prompts.parse import END_OF_CALL, START_OF_CALL
from vlm_r1.prompts.parse_values import unfence

MAX_CHARS = 4000
"""Longest call that is read."""


class CallError(Exception):
    """A call that is not made: `kind` is one of `FAILURES`, the message is for the model."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


FAILURES = {
    "bad_call": "the call is not a JSON object with a name",
    "unknown_tool": "there is no tool of this name",
    "bad_arguments": "the tool takes other arguments",
    "tool_error": "the tool raised an exception",
    "timeout": "the tool took too long",
    "bad_image": "the tool returned an image that cannot be shown",
}
"""What may be wrong with a call -> what it means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The name of a tool and its arguments.

    Example: `read_call('<tool>{"name": "zoom", "box": [1, 2, 3, 4]}</tool>').arguments == {"box": [1, 2, 3, 4]}`.
    """

    name: str
    arguments: Mapping[str, Any]


def read_call(text: str) -> Call | None:
    """The call that a text ends with; None where it ends with none.

    Arguments stand beside the name, or in an object called "arguments". Raises `CallError` for one that cannot be read.
    """
    if not text.rstrip().endswith(END_OF_CALL):
        return None
    start = text.rfind(START_OF_CALL)
    if start < 0:
        raise CallError("bad_call", f"there is no {START_OF_CALL} before {END_OF_CALL}.")
    inside = text[start + len(START_OF_CALL) : text.rfind(END_OF_CALL)]
    form = f'Write {START_OF_CALL}{{"name": "...", ...}}{END_OF_CALL}.'
    if len(inside) > MAX_CHARS:
        raise CallError("bad_call", f"the call is longer than {MAX_CHARS} characters. {form}")
    try:
        value = json.loads(unfence(inside))
    except (ValueError, RecursionError):
        raise CallError("bad_call", f"the call is not JSON. {form}") from None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise CallError("bad_call", f"the call is not an object with a name. {form}")
    rest = {key: inner for key, inner in value.items() if key != "name"}
    if rest.keys() == {"arguments"}:
        rest = rest["arguments"]
        if not isinstance(rest, dict):
            raise CallError("bad_arguments", f"arguments is {shown(rest, 40)}, not an object.")
    return Call(name=value["name"], arguments=rest)
