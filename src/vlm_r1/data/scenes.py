"""Generated scenes as samples: a lazy sequence over a range of seeds.

A scene is a pure function of its seed, and each split owns a range of seeds, so nothing leaks between splits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from vlm_r1.boxes import Box
from vlm_r1.config import ScenesSource
from vlm_r1.data.lazy import SampleSequence
from vlm_r1.data.scene_questions import KINDS, Question, arrangement_for, ask, detect, where
from vlm_r1.data.scene_things import Scene, loosened, make_scene
from vlm_r1.errors import ConfigError, nearest
from vlm_r1.records import LabelledBox, Sample, SampleImage, Truth

SPLIT_SEEDS = {
    "base": 0,
    "train": 1 << 32,
    "in_domain": 2 << 32,
    "out_of_domain": 3 << 32,
    "tune": 4 << 32,
}
"""First seed of each split; a split owns the 2**32 seeds from there."""


FRAME_S = 0.5
"""Seconds between two frames of a video."""


class ScenesSequence(SampleSequence):
    """`n * per_image` samples, made when asked for; samples of one image are neighbours."""

    def __init__(self, source: ScenesSource) -> None:
        self.source = source
        self.per_image = source.per_image
        self._kinds = sorted(source.questions)
        weights = np.array([source.questions[k] for k in self._kinds], float)
        self._cumulative = np.cumsum(weights / weights.sum())
        self._last: tuple[int, list[Sample]] | None = None

    def __len__(self) -> int:
        return self.source.n * self.per_image

    def at(self, index: int) -> Sample:
        """The sample at an index; its image's samples are kept until another image is asked for."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image, question = divmod(index % len(self), self.per_image)
        if self._last is None or self._last[0] != image:
            self._last = (image, self.of_image(image))
        return self._last[1][question]

    def of_image(self, number: int) -> list[Sample]:
        """All samples about image `number` of this source."""
        number += self.source.start
        seed = SPLIT_SEEDS[self.source.split] + number
        rng = np.random.default_rng([seed, 2])
        first_kind = self._pick(rng)
        scene, first = self._askable(seed, first_kind, rng)
        drawn = SampleImage(image=scene.draw(self.source.scale))
        questions = [first]
        tries = 0
        while len(questions) < self.per_image:
            tries += 1
            found = self._ask(self._pick(rng), scene, rng)
            # A small scene has few questions: after enough tries one may come again.
            if found is not None and (
                tries > 10 * self.per_image or all(found.question != q.question for q in questions)
            ):
                questions.append(found)
            elif tries > 100 * self.per_image:
                questions.append(first)
        # A generator of its own: with and without noise, the same questions are asked.
        noise = np.random.default_rng([seed, 3])
        samples = []
        for place, question in enumerate(questions):
            sample = Sample(
                id=f"{self.source.split}-{number}-{place}",
                images=(drawn,),
                question=question.question,
                truth=self._enlarged(self._loose(self._mislabelled(question.truth, scene, noise), rng)),
                task=question.task,
                source=f"scenes/{question.kind}",
                think=question.think,
                columns=self._script(question, scene, np.random.default_rng([seed, 5, place])),
            )
            samples.append(self._filmed(sample, question, scene, np.random.default_rng([seed, 6, place])))
        return samples

    def _filmed(self, sample: Sample, question: Question, scene: Scene, rng: np.random.Generator) -> Sample:
        """The sample as one of a video in which an object comes and goes, where the question is about that."""
        if question.comes is None:
            return sample
        start, stop = sorted(int(n) for n in rng.choice(self.source.frames + 1, 2, replace=False))
        [there] = sample.images
        gone = SampleImage(image=scene.draw(self.source.scale, hidden=question.comes))
        return replace(
            sample,
            images=tuple(there if start <= i < stop else gone for i in range(self.source.frames)),
            times=tuple(FRAME_S * i for i in range(self.source.frames)),
            truth=Truth(text=f"[{FRAME_S * start}, {FRAME_S * (stop - 1)}]"),
        )

    def _askable(self, seed: int, kind: str, rng: np.random.Generator) -> tuple[Scene, Question]:
        """The first scene of a seed about which a question of this kind can be asked, and the question."""
        for attempt in range(1000):
            scene = make_scene(seed, arrangement_for(kind), attempt, self.source.difficulty)
            found = self._ask(kind, scene, rng)
            if found is not None:
                return scene, found
        raise RuntimeError(f"no scene of seed {seed} allows a question of kind {kind}")

    def _ask(self, kind: str, scene: Scene, rng: np.random.Generator) -> Question | None:
        if kind == "detect" and self.source.absent < 1 and rng.uniform() >= self.source.absent:
            return detect(scene.things, rng, absent=False)
        return ask(kind, scene.things, rng)

    def _mislabelled(self, truth: Truth, scene: Scene, rng: np.random.Generator) -> Truth:
        """Each true box is put around another object of the scene with probability `label_noise`."""
        if not self.source.label_noise or not truth.boxes:
            return truth
        boxes = []
        for true in truth.boxes:
            others = [t.box for t in scene.things if t.box != true.box]
            if others and rng.uniform() < self.source.label_noise:
                true = LabelledBox(box=others[int(rng.integers(len(others)))], label=true.label)
            boxes.append(true)
        return Truth(boxes=tuple(boxes))

    def _pick(self, rng: np.random.Generator) -> str:
        return self._kinds[
            min(
                int(np.searchsorted(self._cumulative, rng.uniform())),
                len(self._kinds) - 1,
            )
        ]

    def _enlarged(self, truth: Truth) -> Truth:
        if self.source.scale == 1 or not truth.boxes:
            return truth
        boxes = tuple(LabelledBox(box=self._times(b.box), label=b.label) for b in truth.boxes)
        return replace(truth, boxes=boxes)

    def _times(self, box: Box) -> Box:
        x1, y1, x2, y2 = (side * self.source.scale for side in box)
        return (x1, y1, x2, y2)

    def _script(self, question: Question, scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        """The calls that show a mark, as rows of files script calls: what SFT teaches where there is an environment.

        Half of the scripts look at another object first: what a call costs can unlearn that.
        """
        if question.look is None:
            return {}
        looks = [(question.think, question.look)]
        others = [thing for thing in scene.things if thing.box != question.look]
        if others and rng.uniform() < 0.5:
            other = others[int(rng.integers(len(others)))]
            looks.insert(0, (f"{other.name}, {where(other)}", other.box))
        return {"calls": [{"think": think, "name": "zoom", "box": list(self._times(box))} for think, box in looks]}

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
        if kind == "mark" and source.scale == 1:
            raise ConfigError("scenes.questions: mark needs images that show marks; set scenes.scale: 4")
        if (kind == "when") != (source.frames > 1):
            raise ConfigError("scenes.questions: when is asked about videos, and nothing else is; set scenes.frames: 6")
    return ScenesSequence(source)
