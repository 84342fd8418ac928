"""Every built-in reward by its name: the one table that recipes, data files and the command line choose from."""

from __future__ import annotations

from collections.abc import Callable

from vlm_r1.records import Score
from vlm_r1.rewards.accuracy import ACCURACY
from vlm_r1.rewards.format import format_reward
from vlm_r1.rewards.llm_judge import llm_judge, llm_judge_all
from vlm_r1.rewards.shaping import calls, environment, length_cosine, repetition

REWARDS: dict[str, Callable[..., Score]] = {
    "format": format_reward,
    **ACCURACY,
    "length_cosine": length_cosine,
    "repetition": repetition,
    "calls": calls,
    "environment": environment,
    "llm_judge": llm_judge,
}
"""Reward name -> function `(sample, answer, **options) -> Score`."""

BATCHED: dict[str, Callable[..., list[Score]]] = {"llm_judge": llm_judge_all}
"""Rewards that score many answers at once (they wait for a server): `(samples, answers, **options) -> scores`."""

KEEPS_TIME = frozenset({"math", "llm_judge"})
"""Rewards that limit each comparison or request themselves (option `timeout_s`): they start or wait for another
process, which a limit around the whole call would cut off."""

ABOUT_THE_TEXT = frozenset({"format", "length_cosine", "repetition", "calls", "environment"})
"""Rewards that judge how an answer is written; a sample's `reward` field replaces the others."""

TASK_OF_REWARD: dict[str, str] = {
    "iou": "rec",
    "giou": "rec",
    "iou_threshold": "rec",
    "point_in_box": "gui",
    "od_map": "ovd",
    "od_ap50": "ovd",
    "od_length": "ovd",
    "weighted_detection": "ovd",
    "count": "count",
    "choice": "choice",
    "yes_no": "yes_no",
    "number": "number",
    "math": "math",
    "exact_text": "text",
    "edit_similarity": "text",
    "tiou": "when",
    "llm_judge": "text",
}
"""Reward name -> the task whose answers it reads, where a row does not name its task."""
