"""Rows of the rollout and evaluation tables (`runtime.runlog`), made from records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vlm_r1.records import Answer, Rollout, RolloutGroup, Sample, Score
from vlm_r1.runtime.runlog import boxes_to_json


def image_bytes(sample: Sample) -> bytes | None:
    """The sample's first image as it is stored, or as PNG where it was made in memory; None without images."""
    return sample.images[0].read() if sample.images else None


def answer_row(sample: Sample, answer: Answer) -> dict[str, Any]:
    """The columns that both tables share, without the image's bytes."""
    size = sample.images[0].size if sample.images else (None, None)
    predicted = answer.value if isinstance(answer.value, tuple) else ()
    return {
        "sample_id": sample.id,
        "task": sample.task,
        "question": sample.question,
        "completion": answer.raw,
        "think": answer.think,
        "answer": answer.text,
        "failure": answer.failure.kind if answer.failure else None,
        "true_boxes": boxes_to_json(sample.truth.boxes or ()),
        "pred_boxes": boxes_to_json(predicted),
        "image_width": size[0],
        "image_height": size[1],
    }


def rollout_rows(
    groups: Sequence[RolloutGroup],
    answers: Sequence[Sequence[Answer]],
    scores: Sequence[Sequence[Score]],
    advantages: Sequence[Sequence[float]],
) -> list[dict[str, Any]]:
    """One row per answer of a step, its group being the prompt's number; the image's bytes stand on its first row."""
    rows = []
    for n, group in enumerate(groups):
        sample = group.prompt.sample
        for place, (rollout, answer, score, advantage) in enumerate(
            zip(group.rollouts, answers[n], scores[n], advantages[n], strict=True)
        ):
            rows.append(
                {
                    "group": group.prompt.number,
                    "source": sample.source,
                    **answer_row(sample, answer),
                    **_numbers(rollout, score),
                    "advantage": advantage,
                    "image": image_bytes(sample) if place == 0 else None,
                }
            )
    return rows


def _numbers(rollout: Rollout, score: Score) -> dict[str, Any]:
    return {
        "finish": rollout.finish,
        "n_tokens": len(rollout.token_ids),
        "token_ids": list(rollout.token_ids),
        "logprobs": list(rollout.logprobs),
        "version": rollout.version,
        "reward": score.total,
        "parts": json.dumps(dict(score.parts)),
    }
