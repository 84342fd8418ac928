"""A model folder for other evaluation tool kits: images and texts in; our prompt, coordinates and parser; text out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from vlm_r1.config import ModelConfig, RolloutConfig
from vlm_r1.distributed import processes
from vlm_r1.errors import ConfigError, nearest
from vlm_r1.eval.run import read_rollouts
from vlm_r1.models.load import load_policy, prompt_of_model
from vlm_r1.prompts.kinds import KINDS
from vlm_r1.prompts.templates import TASKS, template_text
from vlm_r1.records import Answer, Sample, SampleImage, SamplingParams, Truth
from vlm_r1.rollout.native import NativeEngine

SPACES = ("as_written", "pixels", "relative_1", "relative_1000")
"""How boxes are handed on: as the model wrote them, or as pixels or shares (of 1 or of 1000) of the original image."""


class Answerer:
    """Greedy (or sampled) answers of a model folder to images and texts, the image computed once for each question.

    The text goes into the template that the model was trained with; what is handed on is the inside of the answer tags.
    Example: `Answerer("runs/mine/final", task="rec", boxes="relative_1").answer([([image], "the red circle")], 256)`.
    """

    def __init__(
        self,
        model: str,
        *,
        template: str | None = None,
        task: str = "text",
        boxes: str = "as_written",
        after: str = "",
        batch_size: int = 1,
    ) -> None:
        """Load it. `task` says what kind of answer is read; `after`: of a text, only what follows this is the question.

        Raises `ConfigError` for an unknown task, template or space, and `ModelError` for a folder that is none.
        """
        if task not in TASKS:
            raise ConfigError(f'task={task}: unknown task "{task}": {nearest(task, TASKS)}')
        if boxes not in SPACES:
            raise ConfigError(f"boxes={boxes}: no such space: {nearest(boxes, SPACES)}")
        if boxes != "as_written" and not TASKS[task].kind.boxes:
            raise ConfigError(f"boxes={boxes}: task={task} has no boxes; name one that has, such as task=rec")
        prompt = prompt_of_model(model)
        if template is not None:
            template_text(template)
            prompt = prompt.model_copy(update={"template": template})
        self.task, self.boxes, self.after, self.batch_size = task, boxes, after, batch_size
        self.loaded = load_policy(ModelConfig(path=model), prompt)
        self.loaded.policy.to(processes.start().device)
        self.engine = NativeEngine(self.loaded, RolloutConfig())

    def answer(
        self,
        questions: Sequence[tuple[Sequence[Image.Image], str]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """One text for each pair of images and question; temperature 0 is greedy."""
        sampling = SamplingParams(max_new_tokens=max_new_tokens)
        if temperature > 0:
            sampling = replace(sampling, temperature=temperature, seed=(seed,))
        told: list[str] = []
        for start in range(0, len(questions), self.batch_size):
            samples = [self._sample(*question) for question in questions[start : start + self.batch_size]]
            prompts = [replace(self.loaded.family.encode(s), number=start + i) for i, s in enumerate(samples)]
            for group in self.engine.generate(prompts, sampling, n=1):
                told.append(self._told(read_rollouts(group)[0], group.prompt.sample))
        return told

    def _sample(self, images: Sequence[Image.Image], text: str) -> Sample:
        _, found, question = text.partition(self.after) if self.after else ("", "", text)
        question = (question if found or not self.after else text).strip()
        shown = tuple(SampleImage(image=image) for image in images)
        return Sample(id=question[:40], question=question, images=shown, truth=Truth(), task=self.task)

    def _told(self, answer: Answer, sample: Sample) -> str:
        if self.boxes == "as_written" or not isinstance(answer.value, tuple) or not sample.images:
            return answer.raw if answer.text is None else answer.text
        size = sample.images[0].size
        width, height = {"pixels": (1.0, 1.0), "relative_1": size, "relative_1000": (size[0] / 1e3, size[1] / 1e3)}[
            self.boxes
        ]
        digits = 4 if self.boxes == "relative_1" else None
        sides = [
            [round(value / scale, digits) for value, scale in zip(item.box, (width, height) * 2, strict=True)]
            for item in answer.value
        ]
        if TASKS[self.task].kind is not KINDS["boxes"]:
            return json.dumps(sides[0]) if sides else "None"
        rows: list[dict[str, Any]] = [
            {"bbox_2d": box, "label": item.label} for box, item in zip(sides, answer.value, strict=True)
        ]
        return json.dumps(rows, ensure_ascii=False) if rows else "None"
