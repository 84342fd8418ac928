"""The rubric: which rewards count, how much, and when; built from the `rewards` section of a recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vlm_r1.config import RewardConfig
from vlm_r1.errors import ConfigError, RewardError, nearest
from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.bound import Beat, Bound, bind, no_beat
from vlm_r1.rewards.registry import ABOUT_THE_TEXT, REWARDS


class Rubric:
    """Scores answers: a weighted sum of named rewards.

    `counts` keeps, over the life of the rubric, how often a reward raised (`errors/NAME`), ran out of time
    (`timeouts/NAME`) or could not score (`not_scorable/NAME`).
    """

    def __init__(self, config: RewardConfig, beat: Beat = no_beat) -> None:
        self.config, self.beat = config, beat
        self.counts: Counter[str] = Counter()
        self._bound: dict[str, Bound] = {}
        for name in (*config.parts, *config.shadow, *([config.gate] if config.gate else [])):
            self._get(name)
        # A reward may be configured for the samples that name it, without being one of the parts.
        for name in config.options:
            self._get(name)

    def _get(self, name: str) -> Bound:
        if name not in self._bound:
            self._bound[name] = bind(name, self.config, self.counts, self.beat)
        return self._bound[name]

    def weights(self, sample: Sample) -> dict[str, float]:
        """Reward name -> weight for one sample.

        A sample's `reward` takes the place, and the summed weight, of every part that judges the content; `format`,
        `length_cosine` and `repetition` stay. It names a built-in reward or one that the recipe configures: a data
        file cannot bring code. Raises `RewardError` for any other name.
        """
        if sample.reward is None:
            return self.config.parts
        self.check_name(sample.reward, f"sample {sample.id}")
        kept = {name: weight for name, weight in self.config.parts.items() if name in ABOUT_THE_TEXT}
        replaced = [weight for name, weight in self.config.parts.items() if name not in ABOUT_THE_TEXT]
        return {sample.reward: sum(replaced) if replaced else 1.0, **kept}

    def check_name(self, name: str, where: str) -> None:
        """Raise `RewardError` where a row may not name this reward; `where` is what the message calls the row."""
        if name not in REWARDS and name not in self._bound:
            raise RewardError(f'{where}: unknown reward "{name}": {nearest(name, {*REWARDS, *self._bound})}')

    def score(self, sample: Sample, answer: Answer) -> Score:
        """The score of one answer; `score_all` is faster where a reward waits for a server."""
        return self.score_all([sample], [answer])[0]

    def score_all(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[Score]:
        """One score per answer, in order: total = sum of weight x part over the parts that could be scored.

        The total is None where no part could, or where a truncated answer is to be skipped; it is 0 for a truncated
        answer under `truncated: zero`. Where the gate is 0 or less only the gate's own part counts. Parts are kept
        unweighted, whatever the total. Raises `RewardError` as the rewards' policy on errors says.
        """
        weights = [self.weights(sample) for sample in samples]
        needed = [{*names, *([self.config.gate] if self.config.gate else [])} for names in weights]
        results = self._run(samples, answers, needed)
        return [self._combine(*row) for row in zip(answers, weights, results, strict=True)]

    def shadow(self, sample: Sample, answer: Answer) -> dict[str, float | None]:
        """The rewards of `rewards.shadow` for one answer: measured, never trained on."""
        return self.shadow_all([sample], [answer])[0]

    def shadow_all(self, samples: Sequence[Sample], answers: Sequence[Answer]) -> list[dict[str, float | None]]:
        """The shadow rewards of many answers, in order."""
        results = self._run(samples, answers, [set(self.config.shadow)] * len(samples))
        return [{name: row[name].total for name in self.config.shadow} for row in results]

    def _run(
        self, samples: Sequence[Sample], answers: Sequence[Answer], needed: Sequence[set[str]]
    ) -> list[dict[str, Score]]:
        """Every needed reward of every answer, one call per reward."""
        results: list[dict[str, Score]] = [{} for _ in samples]
        for name in sorted(set().union(*needed)):
            rows = [i for i, names in enumerate(needed) if name in names]
            scores = self._get(name).run([samples[i] for i in rows], [answers[i] for i in rows])
            for i, score in zip(rows, scores, strict=True):
                results[i][name] = score
        return results

    def _combine(self, answer: Answer, weights: Mapping[str, float], scores: Mapping[str, Score]) -> Score:
        parts: dict[str, float | None] = {name: scores[name].total for name in weights}
        notes = [f"{name}: {note}" for name, score in scores.items() for note in score.notes]
        counted = dict(weights)
        gate = self.config.gate
        if gate is not None:
            passed = scores[gate].total
            parts.setdefault(gate, passed)
            if passed is not None and passed <= 0:
                counted = {name: weight for name, weight in weights.items() if name == gate}
                notes.append(f"gate {gate} failed")
        scorable = [weight * part for name, weight in counted.items() if (part := parts[name]) is not None]
        total: float | None = sum(scorable) if scorable else None
        if gate is not None and not counted:
            total = 0.0
        if answer.truncated and self.config.truncated != "score":
            total = 0.0 if self.config.truncated == "zero" else None
            notes.append(f"truncated: {self.config.truncated}")
        return Score(total=total, parts=parts, notes=tuple(notes))


def build_rubric(config: RewardConfig, beat: Beat = no_beat) -> Rubric:
    """The rubric of a recipe; it calls `beat` before each call of a reward.

    Raises `ConfigError` for an unknown reward or option, or where there is no part.
    """
    if not config.parts:
        raise ConfigError('rewards.parts is empty: name at least one reward, for example {"iou": 1.0}')
    return Rubric(config, beat)
