"""What an answer asked of its environment and was shown, for pages."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_r1.prompts.parse import asked_in

MAX_REPLY = 300
"""Characters of a reply that pages show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One call: what was asked, where in the image, the reply, what went wrong, and the images shown, as addresses."""

    asked: str
    where: str
    reply: str
    failure: str
    images: tuple[str, ...]


def looks(row: Mapping[str, Any]) -> tuple[Look, ...]:
    """The calls of a row of a table (`runtime.runlog`), in order; none where the row has none."""
    calls, shown, found = json.loads(row.get("calls") or "[]"), list(row.get("shown") or ()), []
    for call in calls:
        images, shown = shown[: call["images"]], shown[call["images"] :]
        box = call["box"]
        found.append(
            Look(
                asked=asked_in(call["text"]),
                where="" if box is None else f"({', '.join(f'{side:.0f}' for side in box)})",
                reply=call["reply"][:MAX_REPLY],
                failure=call["failure"],
                images=tuple(f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images),
            )
        )
    return tuple(found)
