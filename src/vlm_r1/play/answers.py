"""A model's answers to one question, token by token."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from queue import SimpleQueue

from torch import Tensor

from vlm_r1.config import EnvConfig, ModelConfig
from vlm_r1.distributed.processes import local_device
from vlm_r1.envs.host import Host, open_host
from vlm_r1.eval.run import read_rollouts
from vlm_r1.models.load import LoadedPolicy, load_policy, prompt_of_model
from vlm_r1.prompts.parse import read_answer
from vlm_r1.prompts.templates import build_question
from vlm_r1.records import Answer, Prompt, Sample, SamplingParams
from vlm_r1.rollout.native import NativeEngine

MIN_PAUSE = 0.03
"""Seconds between two looks at unfinished answers: a page shows no more, and decoding their text takes time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A loaded model and what it is called on the page."""

    name: str
    loaded: LoadedPolicy
    host: Host | None = None

    @property
    def template(self) -> str:
        """The template that its questions are put in."""
        return self.loaded.family.settings.template

    def asked_with(self, template: str | None) -> Speaker:
        """This model, asked with another template; None keeps its own."""
        if template is None or template == self.template:
            return self
        family = copy.copy(self.loaded.family)
        family.settings = family.settings.model_copy(update={"template": template})
        return dataclasses.replace(self, loaded=dataclasses.replace(self.loaded, family=family))


def load_speaker(path: str, tools: Sequence[str] = ()) -> Speaker:
    """A model, on the accelerator where there is one, with the prompt settings it was trained with, and the tools that
    it may call.

    Raises `ModelError`, and `ConfigError` for a tool that is not known.
    """
    loaded = load_policy(ModelConfig(path=path), prompt_of_model(path))
    loaded.policy.to(local_device()).eval()
    host = open_host(EnvConfig(tools=list(tools)) if tools else None, loaded.family)
    return Speaker(name=path, loaded=loaded, host=host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question and how it is answered: `n` samples of a seed, or one greedy answer where the seed is None.

    Example: `Asked(sample=sample, n=4, temperature=0.7, seed=1, max_new_tokens=256)`.
    """

    sample: Sample
    n: int = 1
    temperature: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 1024
    template: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a model is: the texts so far, and the answers once they have ended or were stopped.

    `asked` is the text that the model was given; `seconds` is the time since it started.
    """

    asked: str
    texts: tuple[str, ...] = ()
    answers: tuple[Answer, ...] | None = None
    stopped: bool = False
    seconds: float = 0.0


class _Halt(Exception):
    """Raised in the decoding when nobody waits for its end."""


def stream(speaker: Speaker, asked: Asked, halt: threading.Event, pool: Executor) -> Iterator[Progress]:
    """The answers as they grow; the last `Progress` holds them read.

    The model runs in `pool`. Setting `halt`, or closing the iterator, ends it after the next token. Raises what
    encoding the question raises.
    """
    speaker = speaker.asked_with(asked.template)
    loaded, start = speaker.loaded, time.monotonic()
    given = build_question(asked.sample, speaker.template, loaded.family.tools)
    news: SimpleQueue[tuple[str, ...] | None] = SimpleQueue()
    prompts: list[Prompt] = []
    written: tuple[str, ...] = ("",) * asked.n
    shown = 0.0

    def watch(tokens_BT: Tensor, lengths_B: Tensor) -> None:
        nonlocal shown, written
        if halt.is_set():
            raise _Halt
        if time.monotonic() - shown >= MIN_PAUSE:
            rows = zip(tokens_BT.tolist(), lengths_B.tolist(), strict=True)
            texts = loaded.tokenizer.batch_decode([row[:n] for row, n in rows], skip_special_tokens=True)
            # A character may be cut in the middle of its bytes.
            written = tuple(text.rstrip("\ufffd") for text in texts)
            news.put(written)
            shown = time.monotonic()

    def work() -> tuple[Answer, ...] | None:
        prompts.append(loaded.family.encode(asked.sample))
        sampling = SamplingParams(
            temperature=asked.temperature,
            max_new_tokens=asked.max_new_tokens,
            seed=None if asked.seed is None else (asked.seed,),
            max_calls=speaker.host.max_calls if speaker.host else 0,
        )
        try:
            [group] = NativeEngine(loaded, host=speaker.host).generate(prompts, sampling, n=asked.n, watch=watch)
        except _Halt:
            return None
        return tuple(read_rollouts(group))

    yield Progress(asked=given, texts=written)
    future = pool.submit(work)
    future.add_done_callback(lambda _: news.put(None))
    try:
        while (texts := news.get()) is not None:
            yield Progress(asked=given, texts=texts, seconds=time.monotonic() - start)
        answers = future.result()
    except GeneratorExit:
        halt.set()
        raise
    stopped = answers is None
    if answers is None:
        answers = tuple(read_answer(text, asked.sample, prompts[0].box_map, truncated=True) for text in written)
    texts = tuple(answer.raw for answer in answers)
    yield Progress(asked=given, texts=texts, answers=answers, stopped=stopped, seconds=time.monotonic() - start)
