"""The model `vlm_r1` of lmms-eval, found through the entry point group `lmms_eval.models`. Imported there alone."""

from __future__ import annotations

import os
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages

from vlm_r1.errors import ConfigError
from vlm_r1.eval.elsewhere import Answerer

MANIFEST = ModelManifest(model_id="vlm_r1", chat_class_path="vlm_r1.eval.lmms.VlmR1")


class VlmR1(lmms):
    """`lmms-eval --model vlm_r1 --model_args pretrained=FOLDER,task=rec,boxes=relative_1,after=describes:`.

    A task's `until` is not used, as by lmms-eval's own classes: an answer ends at `</answer>` or with the turn.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "tiny",
        template: str | None = None,
        task: str = "text",
        boxes: str = "as_written",
        after: str = "",
        batch_size: int | str | None = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Load the folder; the arguments between are those of `Answerer`.

        Raises `ConfigError` with several processes, and where lmms-eval asks for a device or a batch size by `auto`.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("vlm_r1 in lmms-eval: one process answers; start it without accelerate launch")
        if not str(batch_size or 1).isdigit():
            raise ConfigError(f"--batch_size {batch_size}: give a number")
        size = min(int(batch_size or 1), max_batch_size or int(batch_size or 1))
        self._model = Answerer(pretrained, template=template, task=task, boxes=boxes, after=after, batch_size=size)
        if device is not None:
            self._model.loaded.policy.to(device)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """One text for each request, in their order; requests with the same settings are answered together."""
        by_settings: dict[tuple[int, float], list[int]] = {}
        for place, request in enumerate(requests):
            settings = request.args[2]
            temperature = settings.get("temperature") or 0.0
            if settings.get("do_sample") is False:
                temperature = 0.0
            by_settings.setdefault((int(settings.get("max_new_tokens", 1024)), float(temperature)), []).append(place)
        told: list[str] = [""] * len(requests)
        for (max_new_tokens, temperature), places in by_settings.items():
            questions = [self._question(requests[place].args) for place in places]
            for place, text in zip(places, self._model.answer(questions, max_new_tokens, temperature), strict=True):
                told[place] = text
                context, _, settings, *_ = requests[place].args
                self.cache_hook.add_partial("generate_until", (context, settings), text)
        return told

    def _question(self, arguments: tuple[Any, ...]) -> tuple[list[Any], str]:
        _, to_messages, _, number, task, split = arguments
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][number]))
        images, videos, audios = messages.extract_media()
        if videos or audios:
            raise ConfigError(f"task {task}: asks about video or audio, and the model takes images and text")
        parts = [part.text for message in messages.messages for part in message.content if part.type == "text"]
        return images, "\n".join(parts)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Not possible: raises `ConfigError`."""
        raise ConfigError("vlm_r1 in lmms-eval: the task asks for likelihoods of given texts; use one that generates")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Not possible: raises `ConfigError`."""
        raise ConfigError("vlm_r1 in lmms-eval: the task has several rounds; use one with a single question")
