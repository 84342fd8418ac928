"""Finished groups of later steps in a checkpoint: plain JSON in which the numbers of a group are two strings."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, cycle, pairwise
from typing import Any

import numpy as np

from vlm_r1.models.family import Family
from vlm_r1.records import Prompt, Rollout, RolloutGroup, SampleImage, SamplingParams, ToolCall, ToolTurn

TOKENS, LOGPROBS = np.dtype("<i4"), np.dtype("<f8")
"""How token ids and log-probs are stored: a list of numbers as JSON would take ten times as long."""


def group_row(step: int, group: RolloutGroup) -> dict[str, Any]:
    """A group that was written for `step`, without its prompt, which is made again from the data."""
    tokens = [token for rollout in group.rollouts for token in rollout.token_ids]
    logprobs = [logprob for rollout in group.rollouts for logprob in rollout.logprobs]
    scores = [rollout.score for rollout in group.rollouts]
    turns = [[_turn_row(turn) for turn in rollout.turns] for rollout in group.rollouts]
    return {
        "step": step,
        "number": group.prompt.number,
        "sample_id": group.prompt.sample.id,
        "token_ids": _packed(tokens, TOKENS),
        "logprobs": _packed(logprobs, LOGPROBS),
        "rollouts": [[len(r.token_ids), r.text, r.finish, r.version] for r in group.rollouts],
        **({"scores": scores} if any(score is not None for score in scores) else {}),
        **({"turns": turns} if any(turns) else {}),
    }


def _turn_row(turn: ToolTurn) -> dict[str, Any]:
    call = turn.call
    shown = [base64.b64encode(image.read()).decode("ascii") for image in call.images]
    return {"at": turn.at, "shown": shown, "position": int(turn.positions[:, 0].min())} | {
        name: getattr(call, name) for name in ("text", "reply", "failure", "box")
    }


def _turn_of(row: Mapping[str, Any], prompt: Prompt, written: Sequence[int], family: Family) -> ToolTurn:
    """The turn of a row in an answer of which these tokens are written: its images are processed again."""
    shown = tuple(SampleImage(data=base64.b64decode(image)) for image in row["shown"])
    box = None if row["box"] is None else tuple(row["box"])
    call = ToolCall(text=row["text"], reply=row["reply"], failure=row["failure"], box=box, images=shown)
    ended = written[row["at"] - 1] == family.end_token_id
    turn = family.tool_turn(prompt.sample, shown, row["reply"], position=row["position"], ended=ended)
    return replace(turn, at=row["at"], call=call)


def group_of(row: Mapping[str, Any], prompt: Prompt, sampling: SamplingParams, family: Family) -> RolloutGroup:
    """The group of a row, which answers `prompt`."""
    tokens, logprobs = _unpacked(row["token_ids"], TOKENS), _unpacked(row["logprobs"], LOGPROBS)
    ends = [0, *accumulate(length for length, *_ in row["rollouts"])]
    rollouts = tuple(
        Rollout(
            token_ids=tuple(tokens[start:stop]),
            logprobs=tuple(logprobs[start:stop]),
            text=text,
            finish=finish,
            version=version,
            turns=tuple(_turn_of(turn, prompt, tokens[start:stop], family) for turn in turns),
            score=score,
        )
        for (start, stop), (_, text, finish, version), turns, score in zip(
            pairwise(ends),
            row["rollouts"],
            row.get("turns") or cycle([()]),
            row.get("scores") or cycle([None]),
            strict=False,
        )
    )
    return RolloutGroup(prompt=prompt, rollouts=rollouts, sampling=sampling)


def _packed(values: list[Any], dtype: np.dtype) -> str:
    return base64.b64encode(np.array(values, dtype=dtype).tobytes()).decode("ascii")


def _unpacked(text: str, dtype: np.dtype) -> list[Any]:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).tolist()
