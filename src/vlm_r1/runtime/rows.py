"""Rows of the rollout and evaluation tables (`runtime.runlog`), made from records."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from vlm_r1.records import Answer, Rollout, RolloutGroup, Sample, SampleImage, Score, ToolCall
from vlm_r1.runtime.runlog import boxes_to_json

SHOWN_SIDE = 256
"""Pixels of the longer side of what tables keep of an image that a tool showed."""


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
        **call_columns(answer),
    }


def call_columns(answer: Answer) -> dict[str, Any]:
    """The columns of what was asked of an environment; None in both where nothing was."""
    return {
        "calls": json.dumps([_call_row(call) for call in answer.calls]) if answer.calls else None,
        "shown": [_small(image) for call in answer.calls for image in call.images] or None,
    }


def _call_row(call: ToolCall) -> dict[str, Any]:
    told = {name: getattr(call, name) for name in ("text", "reply", "failure", "box")}
    return {**told, "images": len(call.images)}


def _small(image: SampleImage) -> bytes:
    """An image as JPEG of at most `SHOWN_SIDE` pixels a side."""
    opened, sink = image.open(), io.BytesIO()
    opened.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    opened.save(sink, "JPEG", quality=88)
    return sink.getvalue()


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
