"""What talks with a model while it answers: the protocol, and the environment that is made of tools."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

from vlm_r1.config import EnvConfig
from vlm_r1.envs.call import read_call
from vlm_r1.envs.tools import TOOLS, Reply, Seen, Tool, make_tool, run_call
from vlm_r1.errors import ConfigError, nearest
from vlm_r1.prompts.parse import END_OF_CALL, START_OF_CALL
from vlm_r1.rewards.plugins import load_plugin

GROUP = "vlm_r1.tools"
"""The entry-point group under which an installed package offers tools and environments."""


class Environment(Protocol):
    """An environment of a group of answers; an error that it raises is told to the model and counted.

    It may also have `score(states, texts) -> list[float]`, over a group's answers when all are written: what the
    reward `environment` then gives.
    """

    def instructions(self, max_calls: int) -> str:
        """What a prompt whose template holds `{tools}` says of it."""

    def begin(self, seen: Sequence[Seen]) -> Sequence[Any]:
        """A state for each answer of a group, from what it has seen."""

    def step(self, state: Any, text: str) -> Reply | None:
        """The reply to what the model wrote last; None where that is its answer."""


class ToolEnvironment:
    """Tools that a model calls by name."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}

    def instructions(self, max_calls: int) -> str:
        """The form of a call, and the tools."""
        times = "once" if max_calls == 1 else f"up to {max_calls} times"
        listed = " ".join(f"{tool.name} ({tool.signature}): {tool.description}" for tool in self.tools.values())
        return (
            f'You may call a tool {times}, by {START_OF_CALL}{{"name": ..., and its arguments}}{END_OF_CALL}; '
            f"you then see what it returns. Tools: {listed}"
        )

    def begin(self, seen: Sequence[Seen]) -> Sequence[Seen]:
        """What each answer has seen is all that tools know."""
        return seen

    def step(self, state: Seen, text: str) -> Reply | None:
        """The reply to a call. Raises `CallError` for one that is wrong."""
        call = read_call(text)
        return None if call is None else run_call(self.tools, call, state)


def build_environment(config: EnvConfig) -> Environment:
    """The environment of a recipe's `env`.

    Raises `ConfigError` for a name that is neither a built-in tool nor a plugin, and for a plugin that is no tool.
    """
    found = [_load(name, config) for name in config.tools]
    environments = [one for one in found if hasattr(one, "step")]
    if environments:
        if len(found) > 1:
            raise ConfigError("env.tools: an environment stands alone; name it without tools beside it")
        return environments[0]  # type: ignore[no-any-return]
    return ToolEnvironment([one if isinstance(one, Tool) else make_tool(one) for one in found])


def _load(name: str, config: EnvConfig) -> Any:
    if name in TOOLS:
        return TOOLS[name]
    found = load_plugin(name, "tool", GROUP)
    if found is None:
        known = f"{nearest(name, TOOLS)}; or path.py:Name"
        raise ConfigError(f'env.tools: "{name}" is neither a tool nor a file\'s function or class: {known}')
    if inspect.isclass(found):
        try:
            return found(**config.options.get(name, {}))
        except TypeError as error:
            raise ConfigError(f"env.options.{name}: {error}") from None
    return found
