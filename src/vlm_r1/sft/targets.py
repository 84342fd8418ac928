"""The text that supervised fine-tuning teaches: the truth in R1 form, in the coordinates the model writes."""

from __future__ import annotations

import zlib

from vlm_r1.boxes import BoxMap
from vlm_r1.errors import DataError
from vlm_r1.models.family import Family
from vlm_r1.prompts.templates import task_of
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
    """The truth as the inside of an answer tag, as the kind of answer writes it (`prompts.kinds`)."""
    text = task_of(sample).kind.target(sample.truth, box_map)
    if text is None:
        raise DataError(f"sample {sample.id}: has no truth to learn from")
    return text


def target_ids(prompt: Prompt, family: Family, thought: float = 1.0) -> list[int]:
    """Token ids of the target (see `target_text`) with the token that ends the model's turns behind it."""
    text = target_text(prompt.sample, prompt.box_map, thought)
    return [*family.tokenizer(text, add_special_tokens=False)["input_ids"], family.end_token_id]
