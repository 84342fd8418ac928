"""Runs an environment beside a rollout engine: one talk an answer, steps in threads, with limits of time and pixels.

What goes wrong in an environment is data: the model is told, in words, and it is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from PIL import Image

from vlm_r1.config import EnvConfig
from vlm_r1.envs.call import FAILURES, CallError
from vlm_r1.envs.environment import Environment, build_environment
from vlm_r1.envs.tools import Reply, Seen
from vlm_r1.errors import DataError, RewardError, shown
from vlm_r1.image_file import MAX_PIXELS
from vlm_r1.models.family import Family
from vlm_r1.prompts.parse import END_OF_ANSWER
from vlm_r1.records import Prompt, Rollout, SampleImage, ToolTurn
from vlm_r1.rewards.limit import call_in_thread

AT_ONCE = 16
"""Steps that run at the same time."""
MAX_TEXT = 4000
"""Characters of a reply, after which it is cut."""


@dataclass(slots=True, kw_only=True)
class Talk:
    """One answer with its environment: its state, what it has seen, the turns so far, and what the model wrote.

    `at` tokens of the model's own, `written`, stand before the last turn, and the answer goes on at `position`.
    """

    prompt: Prompt
    seen: Seen
    state: Any
    position: int
    at: int = 0
    text: str = ""
    turns: list[ToolTurn] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def add(self, turn: ToolTurn, written: Sequence[int]) -> None:
        """The environment has answered what the model wrote last."""
        self.turns.append(turn)
        self.written += written
        self.text += turn.call.text
        self.at, self.position = turn.at, turn.next_position
        self.seen.images += turn.call.images

    def history(self, *, expanded: bool) -> list[int]:
        """The ids of all that stands behind the prompt so far; else with one placeholder an image."""
        found, done = [], 0
        for turn in self.turns:
            found += [*self.written[done : turn.at], *(turn.token_ids if expanded else turn.unexpanded)]
            done = turn.at
        return found

    def finish(self, last: Rollout, earlier: Sequence[Rollout]) -> Rollout:
        """The whole answer, from what was written before each turn and after the last."""
        parts = [*earlier, last]
        return replace(
            last,
            token_ids=tuple(token for part in parts for token in part.token_ids),
            logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
            text=self.text + last.text,
            turns=tuple(self.turns),
            version=min(part.version for part in parts),
        )


def open_host(settings: EnvConfig | None, family: Family) -> Host | None:
    """The host of a recipe's `env` for a model, made once; None without one. Raises `ConfigError` and `ModelError`."""
    if settings is None:
        return None
    if family not in _HOSTS:
        _HOSTS[family] = Host(settings, family)
    return _HOSTS[family]


class Host:
    """The environment of a recipe, for all its answers; `max_calls` bounds each."""

    def __init__(self, settings: EnvConfig, family: Family) -> None:
        family.check_turns()
        self.settings, self.family = settings, family
        self.environment: Environment = build_environment(settings)
        self.max_calls = settings.max_calls
        self._special = (family.placeholder(), *family.tokenizer.all_special_tokens)
        family.tools = self.environment.instructions(self.max_calls)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tools")

    def talks(self, prompt: Prompt, n: int) -> list[Talk]:
        """The talks of `n` answers to a prompt. Raises `RewardError` where the environment cannot begin."""
        sample, to_pixels = prompt.sample, prompt.box_map.to_pixels
        seen = [Seen(sample=sample, images=list(sample.images), to_pixels=to_pixels) for _ in range(n)]
        states = self._own(prompt, "begin", partial(self.environment.begin, seen), n)
        return [
            Talk(prompt=prompt, seen=one, state=state, position=prompt.next_position)
            for one, state in zip(seen, states, strict=True)
        ]

    def ask(self, talk: Talk, written: Rollout) -> Future[ToolTurn | None] | None:
        """What the environment says to the part that a model has just written; None in it where that was the answer.

        None at once where there is nothing to ask: the answer is there, or cut, or has made all its calls.
        """
        done = written.finish != "stop" or written.text.rstrip().endswith(END_OF_ANSWER)
        if done or len(talk.turns) >= self.max_calls:
            return None
        return self._pool.submit(self._turn, talk, written)

    def scores(self, talks: Sequence[Talk], rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts of a group with what the environment gives them, if it gives scores."""
        score = getattr(self.environment, "score", None)
        if score is None:
            return list(rollouts)
        call = partial(score, [talk.state for talk in talks], [rollout.text for rollout in rollouts])
        values = self._own(talks[0].prompt, "score", call, len(rollouts))
        return [replace(rollout, score=float(value)) for rollout, value in zip(rollouts, values, strict=True)]

    def _own(self, prompt: Prompt, what: str, call: Any, count: int) -> Sequence[Any]:
        """A call about a whole group: not the model's fault when it fails."""
        try:
            values = list(call_in_thread(call, self.settings.timeout_s))
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {shown(str(error), 200)[1:-1]}"
            raise RewardError(f"env: {what} of sample {prompt.sample.id} failed ({why})") from error
        if len(values) != count:
            raise RewardError(f"env: {what} of sample {prompt.sample.id} gave {len(values)} for {count} answers")
        return values

    def _turn(self, talk: Talk, written: Rollout) -> ToolTurn | None:
        reply, failure = self._reply(talk, written.text)
        if reply is None:
            return None
        at = talk.at + len(written.token_ids)
        position = talk.position + len(written.token_ids)
        ended = bool(written.token_ids) and written.token_ids[-1] == self.family.end_token_id
        encode = partial(self.family.tool_turn, talk.prompt.sample, position=position, ended=ended)
        try:
            images = [SampleImage(image=_checked(image)) for image in _images(reply)]
            turn = encode(images, self._plain(reply.text))
        except (CallError, DataError) as error:
            reply, failure = _failed("bad_image", str(error)), "bad_image"
            turn = encode([], self._plain(reply.text))
        return replace(turn, at=at, call=replace(turn.call, text=written.text, failure=failure, box=reply.box))

    def _plain(self, text: str) -> str:
        """A text without what would end a turn or stand for an image, and not too long."""
        for token in self._special:
            text = text.replace(token, "")
        return text[:MAX_TEXT]

    def _reply(self, talk: Talk, text: str) -> tuple[Reply | None, str]:
        """What is said to a text, and the kind of failure, "" for none."""
        limit = self.settings.timeout_s
        try:
            reply = call_in_thread(partial(self.environment.step, talk.state, text), limit)
        except CallError as error:
            return _failed(error.kind, str(error)), error.kind
        except TimeoutError:
            return _failed("timeout", f"it took more than {limit:g} s."), "timeout"
        except (Exception, SystemExit) as error:
            why = f"{type(error).__name__}: {shown(str(error), 200)[1:-1]}"
            return _failed("tool_error", why), "tool_error"
        if reply is not None and not isinstance(reply, Reply):
            return _failed("tool_error", "it returned no reply."), "tool_error"
        return reply, ""


_HOSTS: weakref.WeakKeyDictionary[Family, Host] = weakref.WeakKeyDictionary()


def _failed(kind: str, why: str) -> Reply:
    return Reply(text=f"Error: {FAILURES[kind]}: {why}")


def _images(reply: Reply) -> list[Image.Image]:
    return [*([] if reply.image is None else [reply.image]), *reply.images]


def _checked(image: Any) -> Image.Image:
    """An image as RGB, within the limit of pixels. Raises `CallError`."""
    if not isinstance(image, Image.Image):
        raise CallError("bad_image", f"it is {type(image).__name__}, not an image.")
    if image.width * image.height > MAX_PIXELS or not min(image.size):
        raise CallError("bad_image", f"it has {image.width} x {image.height} pixels.")
    try:
        return image.convert("RGB")
    except Exception as error:  # decoders raise whatever they happen upon
        raise CallError("bad_image", f"{type(error).__name__}: {shown(str(error), 200)[1:-1]}") from None
