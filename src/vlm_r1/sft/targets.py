"""The text that supervised fine-tuning teaches: the truth in R1 form, in the coordinates the model writes."""

from __future__ import annotations

import json
import zlib

from vlm_r1.boxes import Box, BoxMap
from vlm_r1.errors import DataError
from vlm_r1.models.family import Family
from vlm_r1.prompts.parse_boxes import loc_tokens
from vlm_r1.prompts.parse_values import number_text
from vlm_r1.records import Prompt, Sample


def target_text(sample: Sample, box_map: BoxMap, thought: float = 1.0) -> str:
    """`<think>...</think><answer>...</answer>` for a sample, its thought empty in all but a share `thought` of samples.

    Which ones is decided by id and question, so a sample has one target in all epochs. Raises `DataError` for a sample
    without a truth.
    """
    think = sample.think or ""
    if thought < 1 and zlib.crc32(f"{sample.id} {sample.question}".encode()) / 2**32 >= thought:
        think = ""
    return f"<think>{think}</think><answer>{answer_text(sample, box_map)}</answer>"


def answer_text(sample: Sample, box_map: BoxMap) -> str:
    """The truth as the inside of an answer tag: one box as `[x1, y1, x2, y2]`, several as JSON, `None` for none.

    Where the model writes location tokens: `<loc0128><loc0256><loc0768><loc0512> cat ; ...`.
    """
    truth = sample.truth
    if truth.boxes is not None:
        if not truth.boxes:
            return "None"
        single = sample.task not in ("ovd", "list")
        boxes = truth.boxes[:1] if single else truth.boxes
        if box_map.loc:
            return " ; ".join(f"{loc_tokens(box_map.to_model(b.box))} {b.label}".strip() for b in boxes)
        if single:
            return json.dumps(_rounded(boxes[0].box, box_map))
        rows = [{"bbox_2d": _rounded(b.box, box_map), "label": b.label} for b in boxes]
        return json.dumps(rows, ensure_ascii=False)
    if truth.number is not None:
        return number_text(truth.number)
    text = truth.choice if truth.choice is not None else truth.text
    if text is None:
        raise DataError(f"sample {sample.id}: has no truth to learn from")
    return text


def _rounded(box: Box, box_map: BoxMap) -> list[float]:
    return [round(v, box_map.digits or None) for v in box_map.to_model(box)]


def target_ids(prompt: Prompt, family: Family, thought: float = 1.0) -> list[int]:
    """Token ids of the target (see `target_text`) with the token that ends the model's turns behind it."""
    text = target_text(prompt.sample, prompt.box_map, thought)
    return [*family.tokenizer(text, add_special_tokens=False)["input_ids"], family.end_token_id]
