"""The kinds of what can be wrong with a data file: the loader raises faults, `data check` lists them all."""

from __future__ import annotations

FAULT_KINDS: dict[str, str] = {
    "encoding": "the file is not UTF-8, or a text holds half a character",
    "json": "the line is not JSON",
    "not_object": "the line is JSON but no object",
    "empty_file": "the file has no rows",
    "question": "the row has no question, or not as text",
    "turns": "the conversation is not one question and at most one answer",
    "solution_missing": "the row has no solution",
    "solution_type": "the solution is not what the task asks for",
    "box_shape": "a box is not four numbers",
    "box_number": "a side of a box is not a finite number",
    "box_reversed": "a box has its far edge before its near edge",
    "box_empty": "a box has no width or no height",
    "box_outside": "a box reaches out of its image",
    "label": "a label is not text",
    "image_type": "the image is neither a path nor encoded bytes",
    "image_missing": "the image file does not exist",
    "image_outside_root": "the image's path leaves the image root",
    "image_url": "the image is a web address",
    "image_data": "the encoded bytes of the image cannot be decoded",
    "image_unreadable": "the image cannot be opened",
    "image_truncated": "the image ends before its last line",
    "image_too_large": "the image has more pixels than the limit",
    "video": "the row's video is neither a clip nor frames with their times",
    "image_tags": "the question has more <image> tags than the row has images",
    "task": "the task is unknown",
    "reward": "the reward is not a name",
    "field": "a further field has the wrong type",
    "duplicate_id": "two rows have the same id",
}
"""Fault kind -> what it means."""
