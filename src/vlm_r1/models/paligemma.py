"""PaliGemma and PaliGemma 2: the whole prompt sees itself both ways, and boxes are location tokens.

`<loc0000>` to `<loc1023>` stand for 1024ths of the image's side, in the order y1 x1 y2 x2, with the label behind
them and ` ; ` between boxes (PaliGemma's report, arXiv 2407.07726). There is no chat template: a prompt is its
images, `<bos>`, the question and a newline, and published checkpoints are asked with `detect {question}`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_r1.boxes import BoxMap
from vlm_r1.errors import DataError
from vlm_r1.models.family import Family
from vlm_r1.models.layout import WHOLE
from vlm_r1.prompts.templates import build_question
from vlm_r1.records import Sample, VisionInput


class PaliGemma(Family):
    """With the text model of Gemma 1 or Gemma 2; softcapping and windows are read from its configuration."""

    shares_images = False

    def text(self, sample: Sample) -> str:
        """As its processor lays it out. Raises `DataError` for a sample without an image."""
        if not sample.images:
            raise DataError(f"sample {sample.id}: has no image, and PaliGemma takes none without; drop the row")
        question = build_question(sample, self.settings.template)
        return f"{self.placeholder() * len(sample.images)}{self.tokenizer.bos_token}{question}\n"

    def blocks(self, token_ids: Tensor) -> Tensor:
        """One block: images see the question too, in windowed layers at any distance."""
        return torch.full((len(token_ids),), WHOLE)

    def positions(self, token_ids: Tensor, vision: dict[str, Tensor]) -> Tensor:
        """They start at 1."""
        return super().positions(token_ids, vision) + 1

    def box_map(self, original: tuple[int, int], vision: VisionInput) -> BoxMap:
        """1024ths of the image, as location tokens."""
        return BoxMap(x=original[0] / 1024, y=original[1] / 1024, loc=True)
