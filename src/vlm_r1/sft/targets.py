"""The text that supervised fine-tuning teaches: the truth in R1 form, in the coordinates the model writes; with an
environment, behind the calls that a sample scripts."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from vlm_r1.boxes import BoxMap
from vlm_r1.envs.host import Host
from vlm_r1.errors import DataError, shown
from vlm_r1.models.family import Family
from vlm_r1.prompts.parse import END_OF_CALL, START_OF_CALL
from vlm_r1.prompts.templates import task_of
from vlm_r1.records import Prompt, Rollout, Sample, ToolTurn


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


def scripted(
    prompt: Prompt, family: Family, host: Host | None, thought: float = 1.0
) -> tuple[list[int], tuple[ToolTurn, ...]]:
    """The target with the calls that the sample scripts, and what the environment answers to each.

    A call of its column `calls` has a thought, a name and arguments; boxes and points are in pixels of the original
    image. The tokens are those that the model is to write. Raises `DataError` for a script that is refused.
    """
    calls = prompt.sample.columns.get("calls") or [] if host is not None else []
    last = target_ids(prompt, family, thought)
    if host is None or not calls:
        return last, ()
    [talk] = host.talks(prompt, 1)
    for number, call in enumerate(calls, 1):
        where = f"sample {prompt.sample.id}: calls: call {number}"
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise DataError(f"{where} is {shown(call, 60)}; write an object with a name and its arguments")
        arguments = {key: _written(key, value, prompt.box_map) for key, value in call.items() if key != "think"}
        text = f"<think>{call.get('think') or ''}</think>{START_OF_CALL}{json.dumps(arguments)}{END_OF_CALL}"
        ids = tuple(family.tokenizer(text, add_special_tokens=False)["input_ids"])
        asked = host.ask(talk, Rollout(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, finish="stop"))
        turn = asked.result() if asked else None
        if turn is None or turn.call.failure:
            refused = "the environment takes it for the answer" if asked else f"env.max_calls is {host.max_calls}"
            raise DataError(f"{where} is not answered ({turn.call.reply if turn else refused})")
        talk.add(turn, ids)
    return [*talk.written, *last], tuple(talk.turns)


def _written(key: str, value: Any, box_map: BoxMap) -> Any:
    """An argument as the model writes it."""
    numbers = [x for x in value if isinstance(x, (int, float))] if isinstance(value, (list, tuple)) else []
    if key == "box" and len(numbers) == 4:
        return [_rounded(x, box_map) for x in box_map.to_model(tuple(map(float, numbers)))]  # type: ignore[arg-type]
    if key == "point" and len(numbers) == 2:
        return [_rounded(x, box_map) for x in box_map.to_model((*map(float, numbers * 2),))[:2]]  # type: ignore[arg-type]
    return value


def _rounded(x: float, box_map: BoxMap) -> float:
    return round(x, box_map.digits) if box_map.digits else round(x)
