"""Every built-in reward by its name: the one table that recipes, data files and the command line choose from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlm_r1.records import Score
from vlm_r1.rewards.format import format_reward
from vlm_r1.rewards.grounding import giou, iou, iou_threshold, point_in_box

REWARDS: dict[str, Callable[..., Score]] = {
    "format": format_reward,
    "iou": iou,
    "giou": giou,
    "iou_threshold": iou_threshold,
    "point_in_box": point_in_box,
}
"""Reward name -> function `(sample, answer, **options) -> Score`."""

BATCHED: dict[str, Callable[..., list[Score]]] = {}
"""Rewards that score many answers at once (they wait for a server): `(samples, answers, **options) -> scores`."""

ABOUT_THE_TEXT = frozenset({"format", "length_cosine", "repetition"})
"""Rewards that judge how an answer is written; a sample's `reward` field replaces the others."""

Options = dict[str, Any]
