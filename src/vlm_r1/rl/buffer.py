"""Finished groups of later steps in a checkpoint: plain JSON in which the numbers of a group are two strings."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from vlm_r1.records import Prompt, Rollout, RolloutGroup, SamplingParams

TOKENS, LOGPROBS = np.dtype("<i4"), np.dtype("<f8")
"""How token ids and log-probs are stored: a list of numbers as JSON would take ten times as long."""


def group_row(step: int, group: RolloutGroup) -> dict[str, Any]:
    """A group that was written for `step`, without its prompt, which is made again from the data."""
    tokens = [token for rollout in group.rollouts for token in rollout.token_ids]
    logprobs = [logprob for rollout in group.rollouts for logprob in rollout.logprobs]
    return {
        "step": step,
        "number": group.prompt.number,
        "sample_id": group.prompt.sample.id,
        "token_ids": _packed(tokens, TOKENS),
        "logprobs": _packed(logprobs, LOGPROBS),
        "rollouts": [[len(r.token_ids), r.text, r.finish, r.version] for r in group.rollouts],
    }


def group_of(row: Mapping[str, Any], prompt: Prompt, sampling: SamplingParams) -> RolloutGroup:
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
        )
        for (start, stop), (_, text, finish, version) in zip(pairwise(ends), row["rollouts"], strict=True)
    )
    return RolloutGroup(prompt=prompt, rollouts=rollouts, sampling=sampling)


def _packed(values: list[Any], dtype: np.dtype) -> str:
    return base64.b64encode(np.array(values, dtype=dtype).tobytes()).decode("ascii")


def _unpacked(text: str, dtype: np.dtype) -> list[Any]:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).tolist()
