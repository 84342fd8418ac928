"""Generated scenes as samples: a lazy sequence over a range of seeds.

A scene is a pure function of its seed, and each split owns a range of seeds, so nothing leaks between splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from vlm_r1.config import ScenesSource
from vlm_r1.data.scene_questions import KINDS, arrangement_for, ask
from vlm_r1.data.scene_things import loosened, make_scene
from vlm_r1.errors import ConfigError, nearest
from vlm_r1.records import LabelledBox, Picture, Sample, Truth

SPLIT_SEEDS = {
    "base": 0,
    "train": 1 << 32,
    "in_domain": 2 << 32,
    "out_of_domain": 3 << 32,
}
"""First seed of each split; a split owns the 2**32 seeds from there."""


class ScenesSequence(Sequence[Sample]):
    """`n * per_picture` samples, made when asked for; samples of one picture are neighbours."""

    def __init__(self, source: ScenesSource) -> None:
        self.source = source
        self.per_picture = source.per_picture
        self._kinds = sorted(source.questions)
        weights = np.array([source.questions[k] for k in self._kinds], float)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._last: tuple[int, list[Sample]] | None = None

    def __len__(self) -> int:
        return self.source.n * self.per_picture

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        picture, question = divmod(index % len(self), self.per_picture)
        if self._last is None or self._last[0] != picture:
            self._last = (picture, self.of_picture(picture))
        return self._last[1][question]

    def of_picture(self, number: int) -> list[Sample]:
        """All samples about picture `number` of this source."""
        seed = SPLIT_SEEDS[self.source.split] + number
        rng = np.random.default_rng([seed, 2])
        first_kind = self._pick(rng)
        scene = make_scene(seed, arrangement_for(first_kind))
        picture = Picture(image=scene.draw())
        samples: list[Sample] = []
        asked: set[str] = set()
        kind = first_kind
        while len(samples) < self.per_picture:
            found = (
                ask(kind, scene.things, rng) or ask("attribute", scene.things, rng) or ask("list", scene.things, rng)
            )
            assert found is not None  # a scene can always be listed
            if found.question in asked and rng.uniform() < 0.9:  # few questions fit a small scene: some repeat
                kind = self._pick(rng)
                continue
            asked.add(found.question)
            truth = self._loose(found.truth, rng)
            samples.append(
                Sample(
                    id=f"{self.source.split}-{number}-{len(samples)}",
                    images=(picture,),
                    question=found.question,
                    truth=truth,
                    task=found.task,
                    source=f"scenes/{found.kind}",
                    think=found.think,
                )
            )
            kind = self._pick(rng)
        return samples

    def _pick(self, rng: np.random.Generator) -> str:
        return self._kinds[
            min(
                int(np.searchsorted(self._cumulative, rng.uniform())),
                len(self._kinds) - 1,
            )
        ]

    def _loose(self, truth: Truth, rng: np.random.Generator) -> Truth:
        if not self.source.loosen or not truth.boxes:
            return truth
        loose = tuple(LabelledBox(box=loosened(b.box, self.source.loosen, rng), label=b.label) for b in truth.boxes)
        return Truth(boxes=loose)


def load_scenes(source: ScenesSource) -> ScenesSequence:
    """The samples of a scenes source. Raises `ConfigError` for an unknown question kind."""
    for kind in source.questions:
        if kind not in KINDS:
            raise ConfigError(f'scenes.questions: unknown kind "{kind}"; {nearest(kind, KINDS)}')
    return ScenesSequence(source)
