"""Which held-out questions and which rollouts the report shows, and what each card says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_r1.errors import CheckpointError, DataError
from vlm_r1.report.findings import boxes_words, number, signed
from vlm_r1.report.images import Album, View
from vlm_r1.report.looks import Look, looks
from vlm_r1.report.pairs import Pair, Row, difference
from vlm_r1.runtime.runlog import ROLLOUT_COLUMNS, boxes_from_json, rollout_path, rollout_steps
from vlm_r1.runtime.shown import Tell, refuse, shown_rows

Find = Callable[[Iterable[Row]], bytes]
"""Finds the image of some rows; raises `DataError` (`report.held_out.HeldOutImages.find`)."""

MAX_TEXT = 4000
"""Characters of a text that the page holds; what is longer than a few lines is folded."""

MAX_SPLITS, MAX_CARDS = 12, 36
"""Splits with images, and cards over all of them: the page stays small and its end within reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One evaluation's half of a card."""

    phase: str
    view: View
    score: str
    text: str
    boxes: str
    failure: str | None
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A held-out question with what was answered before and after."""

    question: str
    change: str
    tone: str
    sides: tuple[Side, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """Cards chosen for one reason, such as "biggest gains"."""

    title: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCard:
    """One answer of a training step. `parts` holds (name, value as text, share of the bar from 0 to 100)."""

    question: str
    view: View
    reward: str
    advantage: str
    group: str
    parts: tuple[tuple[str, str, float], ...]
    think: str
    answer: str
    boxes: str
    failure: str | None
    facts: str
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCards:
    """The best and the worst answers of one step; `alike` where all of its `n` answers have the same reward."""

    step: int
    n: int
    alike: bool
    best: tuple[RolloutCard, ...]
    worst: tuple[RolloutCard, ...]


def each_of(splits: int) -> int:
    """How many cards a shelf gets where so many splits have shelves."""
    return max(1, min(3, MAX_CARDS // (3 * max(1, splits))))


def shelves(pairs: Sequence[Pair], album: Album, find: Find, each: int = 3, seed: int = 0) -> list[Shelf]:
    """Biggest gains, biggest losses and random ones among all questions of a split; `find` has their images.

    Random ones tell how typical the extremes are.
    """
    ranked = sorted((pair for pair in pairs if pair.gain is not None), key=lambda pair: pair.gain or 0.0)
    gains = [pair for pair in reversed(ranked) if (pair.gain or 0.0) > 0][:each]
    losses = [pair for pair in ranked if (pair.gain or 0.0) < 0][:each]
    drawn = random.Random(seed).sample(list(pairs), min(each, len(pairs)))
    chosen = [("Biggest gains", gains), ("Biggest losses", losses), ("Drawn at random", drawn)]
    return [
        Shelf(title=title, cards=tuple(_card(pair, album, find) for pair in found)) for title, found in chosen if found
    ]


def _card(pair: Pair, album: Album, find: Find) -> Card:
    gain = pair.gain
    try:
        image = find(pair.rows)
    except DataError:  # a page without the data it was made of shows the boxes alone
        image = None
    return Card(
        question=_cut(pair.row.get("question")),
        change="" if gain is None else f"{'score' if difference(pair, 'iou') is None else 'IoU'} {signed(gain)}",
        tone="" if not gain else "up" if gain > 0 else "down",
        sides=tuple(
            _side(phase, row, image, album) for phase, row in (("before", pair.before), ("after", pair.after)) if row
        ),
    )


def _side(phase: str, row: Row, image: bytes | None, album: Album) -> Side:
    true, predicted = boxes_from_json(row.get("true_boxes")), boxes_from_json(row.get("pred_boxes"))
    if row.get("iou") is not None:
        score = f"IoU {number(row['iou'])}"
    elif row.get("correct") is not None:
        score = "correct" if row["correct"] else "wrong"
        if row.get("score") not in (None, 0.0, 1.0):
            score += f", score {number(row['score'])}"
    else:
        score = "no score"
    return Side(
        phase=phase,
        view=album.view(image, (row.get("image_width"), row.get("image_height")), true, predicted),
        score=score,
        text=_cut(row.get("completion")),
        boxes=boxes_words(predicted),
        failure=row.get("failure"),
        looks=looks(row),
    )


def step_cards(run_dir: Path, album: Album, tell: Tell = refuse, steps: int = 4, each: int = 2) -> list[StepCards]:
    """The best and worst answers by reward of up to `steps` steps, spread evenly from the first kept to the last."""
    kept = rollout_steps(run_dir)
    if len(kept) > steps:
        kept = [kept[round(i * (len(kept) - 1) / (steps - 1))] for i in range(steps)] if steps > 1 else kept[-1:]
    found = []
    for step in kept:
        try:
            rows = shown_rows(rollout_path(run_dir, step), ROLLOUT_COLUMNS, tell)
        except CheckpointError as error:
            tell(str(error))
            continue
        scored = sorted((row for row in rows if row["reward"] is not None), key=lambda row: row["reward"])
        if not scored:
            continue
        low, high = scored[0]["reward"], scored[-1]["reward"]
        top = [row for row in reversed(scored) if row["reward"] > low or low == high]
        best = _of_different_groups(top, each)
        worst = _of_different_groups([row for row in scored if row["reward"] < best[-1]["reward"]], each)
        cards = [tuple(_rollout_card(row, rows, album) for row in chosen) for chosen in (best, worst)]
        found.append(StepCards(step=step, n=len(rows), alike=low == high, best=cards[0], worst=cards[1]))
    return found


def _of_different_groups(rows: Sequence[Row], each: int) -> list[Row]:
    chosen: dict[Any, Row] = {}
    for row in rows:
        if len(chosen) < each:
            chosen.setdefault(row["group"], row)
    return list(chosen.values())


def _rollout_card(row: Row, rows: Sequence[Row], album: Album) -> RolloutCard:
    group = [other for other in rows if other["group"] == row["group"]]
    image = next((other["image"] for other in group if other["image"] is not None), None)
    rewards = [other["reward"] for other in group if other["reward"] is not None]
    true, predicted = boxes_from_json(row["true_boxes"]), boxes_from_json(row["pred_boxes"])
    facts = [f"{row['n_tokens']} tokens" if row["n_tokens"] is not None else "", row["task"] or "", row["source"] or ""]
    facts += ["cut at the token limit"] if row["finish"] == "length" else []
    spread = f"{number(min(rewards))} to {number(max(rewards))}"
    return RolloutCard(
        question=_cut(row["question"]),
        view=album.view(image, (row["image_width"], row["image_height"]), true, predicted),
        reward=number(row["reward"]),
        advantage="" if row["advantage"] is None else signed(row["advantage"]),
        group=f"group of {len(group)}: rewards {spread}, mean {number(sum(rewards) / len(rewards))}",
        parts=bars(json.loads(row["parts"]) if row["parts"] else {}),
        think=_cut(row["think"]),
        answer=_cut(row["answer"] if row["answer"] is not None else row["completion"]),
        boxes=boxes_words(predicted),
        failure=row["failure"],
        facts=", ".join(fact for fact in facts if fact),
        looks=looks(row),
    )


def bars(parts: Mapping[str, float | None]) -> tuple[tuple[str, str, float], ...]:
    """Each part of a reward: its name, its value in words, and the length of its bar in percent."""
    known = [(name, value) for name, value in parts.items() if value is not None]
    full = max([1.0, *(abs(value) for _, value in known)])
    drawn = [(name, number(value), round(100 * max(0.0, value) / full, 1)) for name, value in known]
    return (*drawn, *((name, "not scored", 0.0) for name, value in parts.items() if value is None))


def _cut(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT} more characters)"
