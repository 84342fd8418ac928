"""`vlm-r1 score`: score what any model wrote, without a model."""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from vlm_r1.boxes import BoxMap
from vlm_r1.config import RewardConfig
from vlm_r1.errors import ConfigError, DataError, UserError, half_character, nearest
from vlm_r1.files import replacing
from vlm_r1.prompts.parse import read_answer
from vlm_r1.prompts.solution import infer_task, read_solution
from vlm_r1.prompts.templates import TASKS
from vlm_r1.records import Sample, Score
from vlm_r1.rewards.bound import Bound, bind
from vlm_r1.rewards.registry import TASK_OF_REWARD

CHUNK = 512
"""Rows scored together, so that rewards which wait for a server wait for many answers at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What `score_file` did: rows, the mean of each reward over its scorable rows, and how many those were."""

    rows: int
    means: dict[str, float | None]
    scorable: dict[str, int]
    counts: Counter[str] = field(default_factory=Counter)


def score_file(
    path: str | Path,
    reward_names: Sequence[str],
    out: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Summary:
    """Score a JSONL file of `completion` and `solution` rows; write the rows with `scores`, `parts` and `notes`.

    Further fields of a row, all optional: `problem`, `task` (else what the reward reads), `image_size` [w, h],
    `model_size` [w, h] (the answer's boxes are pixels of that resized image, else of the original), `tokens` (a
    count), `truncated`, `id`. Out to the file `out`, written aside and renamed, or to standard output. `options`:
    reward name -> its keyword arguments. Raises `DataError` with file and line for a bad row, `ConfigError` for an
    unknown reward or option, `RewardError` where a reward raises.
    """
    if not reward_names:
        raise ConfigError("name at least one reward: --reward NAME")
    config = RewardConfig(options={name: dict(values) for name, values in (options or {}).items()})
    counts: Counter[str] = Counter()
    rewards = {name: bind(name, config, counts) for name in dict.fromkeys(reward_names)}
    for name in config.options:
        if name not in rewards:
            raise ConfigError(f'options for reward "{name}", which is not scored: {nearest(name, rewards)}')
    source = Path(path)
    sums = dict.fromkeys(rewards, 0.0)
    scorable = dict.fromkeys(rewards, 0)
    n = 0
    with _writer(out) as sink:
        for chunk in _chunks(source):
            for row, scores in zip(chunk, _score_rows(source, chunk, rewards), strict=True):
                sink.write(json.dumps(_merged(row[1], scores), ensure_ascii=False) + "\n")
                n += 1
                for name, score in scores.items():
                    if score.total is not None:
                        sums[name] += score.total
                        scorable[name] += 1
    if n == 0:
        raise DataError(f"{source}: the file holds no rows")
    means = {name: sums[name] / scorable[name] if scorable[name] else None for name in rewards}
    return Summary(rows=n, means=means, scorable=scorable, counts=counts)


@contextlib.contextmanager
def _writer(out: str | Path | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    try:
        with replacing(Path(out)) as aside, open(aside, "w", encoding="utf-8") as sink:
            yield sink
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None


def _chunks(path: Path) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Rows with their line numbers, `CHUNK` at a time; blank lines are passed over."""
    chunk: list[tuple[int, dict[str, Any]]] = []
    try:
        with open(path, encoding="utf-8-sig") as source:
            for number, line in enumerate(source, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: not JSON ({error}); write one object per line") from None
                if half := half_character(row):
                    raise DataError(f"{path}:{number}: {half}; write the whole character, or leave it out")
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: a row must be an object, not {type(row).__name__}")
                chunk.append((number, row))
                if len(chunk) == CHUNK:
                    yield chunk
                    chunk = []
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a JSONL file") from None
    if chunk:
        yield chunk


def _score_rows(
    path: Path, chunk: Sequence[tuple[int, dict[str, Any]]], rewards: Mapping[str, Bound]
) -> list[dict[str, Score]]:
    results: list[dict[str, Score]] = [{} for _ in chunk]
    for name, bound in rewards.items():
        samples, answers = [], []
        for number, row in chunk:
            try:
                sample = _sample(row, name, f"line {number}")
                raw, tokens = _completion(row), row.get("tokens", 0)
                if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
                    raise DataError(f'"tokens" is {tokens!r}; give a count')
                answer = read_answer(
                    raw, sample, _box_map(row), n_tokens=tokens, truncated=bool(row.get("truncated", False))
                )
            except UserError as error:
                raise DataError(f"{path}:{number}: {error}") from None
            samples.append(sample)
            answers.append(answer)
        for result, score in zip(results, bound.run(samples, answers), strict=True):
            result[name] = score
    return results


def _sample(row: Mapping[str, Any], reward: str, name: str) -> Sample:
    if "solution" not in row:
        raise DataError(f'the row has no "solution" (it has: {", ".join(sorted(row))})')
    solution, question, named = row["solution"], str(row.get("problem") or ""), row.get("task")
    task = named if named is not None else TASK_OF_REWARD.get(reward) or infer_task(solution, question)
    if task not in TASKS:
        raise DataError(f'unknown task "{task}": {nearest(str(task), TASKS)}')
    # Where a text is asked for, "[0, 1]" is an interval and no malformed box.
    as_text = isinstance(solution, str) and TASKS[task].kind.written
    truth = read_solution(solution, task if as_text else None)
    # Answers to "which are there?" are counted as well as answers to "how many?".
    if named is None and reward == "count" and truth.number is None and truth.boxes is not None:
        task = "ovd"
    return Sample(
        id=str(row.get("id", name)),
        question=question,
        truth=truth,
        task=task,
        source=str(row.get("data_source") or ""),
        columns={key: value for key, value in row.items() if key != "completion"},
    )


def _completion(row: Mapping[str, Any]) -> str:
    """The completion's text; a list of chat messages counts as its last one."""
    value = row.get("completion")
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise DataError(f'"completion" must be a string, not {json.dumps(value)[:80]}')
    return value


def _box_map(row: Mapping[str, Any]) -> BoxMap:
    model = _size(row, "model_size")
    original = _size(row, "image_size")
    if model is None:
        return BoxMap()
    if original is None:
        raise DataError('"model_size" needs "image_size" beside it')
    return BoxMap(x=original[0] / model[0], y=original[1] / model[1])


def _size(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2:
        w, h = value
        if all(isinstance(x, (int, float)) and not isinstance(x, bool) and 0 < x < 1e9 for x in (w, h)):
            return float(w), float(h)
    raise DataError(f'"{key}" is {json.dumps(value)}; give [width, height] in pixels')


def _merged(row: Mapping[str, Any], scores: Mapping[str, Score]) -> dict[str, Any]:
    return {
        **row,
        "scores": {name: score.total for name, score in scores.items()},
        "parts": {name: dict(score.parts) for name, score in scores.items()},
        "notes": [f"{name}: {note}" for name, score in scores.items() for note in score.notes],
    }
