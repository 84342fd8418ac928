"""Rewards that users write: from a file (`path.py:function`) or an installed package (entry point).

Three signatures are understood, told apart by their parameter names:

- ours: `f(sample, answer, **options) -> Score | float | None`
- TRL's: `f(completions, **columns) -> list[float | None]` (or async)
- verl's: `compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float | dict`
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlm_r1.errors import ConfigError
from vlm_r1.records import Answer, Sample, Score, Truth
from vlm_r1.rewards.limit import call_in_thread

GROUP = "vlm_r1.rewards"
"""The entry-point group under which an installed package offers rewards."""

One = Callable[[Sample, Answer], Score]
Many = Callable[[Sequence[Sample], Sequence[Answer]], list[Score]]


def load_plugin(name: str, kind: str = "reward", group: str = GROUP) -> Callable[..., Any] | None:
    """The function (or class) behind `path.py:name`, relative to the working folder, or an entry point of a group.

    None where the name is neither. Raises `ConfigError` for a missing file or function, or one that fails to import;
    `kind` is what its message calls the plugin.
    """
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), function, kind)
    for entry in importlib.metadata.entry_points(group=group, name=name):
        try:
            return _callable(entry.load(), f'entry point "{name}" ({entry.value})')
        except (Exception, SystemExit) as error:
            raise ConfigError(f'{kind} "{name}": entry point {entry.value} cannot be loaded ({error})') from error
    return None


def _from_file(path: Path, function: str, kind: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ConfigError(f'{kind} "{path}:{function}": there is no file {path} (looked in {Path.cwd()})')
    # One module per file, however often it is named: its state is shared by its functions.
    module_name = f"vlm_r1_reward_{path.resolve()}"
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f'{kind} "{path}:{function}": {path} is not a Python file')
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise ConfigError(
                f'{kind} "{path}:{function}": importing {path} raised {type(error).__name__}: {error}'
            ) from error
    if not hasattr(module, function):
        raise ConfigError(f'{kind} "{path}:{function}": {path} has no function "{function}"')
    return _callable(getattr(module, function), f'{kind} "{path}:{function}"')


def _callable(value: Any, what: str) -> Callable[..., Any]:
    if not callable(value):
        raise ConfigError(f"{what}: {value!r} is not a function")
    return value  # type: ignore[no-any-return]


def adapt(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], timeout_s: float
) -> tuple[One, Many | None]:
    """A user's function as `(one, many)`; `many` is None unless the signature takes a batch (TRL's).

    `options` go to the function as keyword arguments, except `conversational` with TRL's signature: it hands
    completions over as message lists. A coroutine is cancelled after `timeout_s`. Raises `ConfigError` for an option
    that the function does not take.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    settings = dict(options)
    conversational = bool(settings.pop("conversational", False)) if "completions" in parameters else False
    for key in settings:
        if key not in parameters and not takes_any:
            raise ConfigError(f'rewards.options.{name}: the function takes no option "{key}"')
    if "completions" in parameters:
        wanted = None if takes_any else frozenset(parameters)
        many = partial(_call_trl, name, function, settings, wanted, conversational, timeout_s)
        return partial(_first, many), many
    if "solution_str" in parameters:
        return partial(_call_verl, name, function, settings), None
    return partial(_call_ours, name, function, settings), None


def _first(many: Many, sample: Sample, answer: Answer) -> Score:
    return many([sample], [answer])[0]


def _call_ours(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], sample: Sample, answer: Answer
) -> Score:
    return as_score(name, function(sample, answer, **options))


def as_score(name: str, value: Any) -> Score:
    """What a plugin returned as a `Score`. Raises `TypeError` for anything but a Score, a number or None."""
    if isinstance(value, Score):
        return value
    if value is None:
        return Score(total=None, parts={name: None})
    if isinstance(value, Mapping) and "score" in value:
        numbers = {str(k): float(v) for k, v in value.items() if k != "score" and isinstance(v, (int, float))}
        total = _number(name, value["score"])
        return Score(total=total, parts={name: total, **{k: v for k, v in numbers.items() if math.isfinite(v)}})
    total = _number(name, value)
    return Score(total=total, parts={name: total})


def _number(name: str, value: Any) -> float:
    # A tensor or numpy scalar has item(); a string would convert by luck alone.
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} returned {value!r}, not a number, None or Score")
    return float(value)


def plain_truth(truth: Truth) -> Any:
    """The truth as plain JSON values: a list of `{"bbox_2d", "label"}`, a number, a letter or a text."""
    if truth.boxes is not None:
        return [{"bbox_2d": list(item.box), "label": item.label} for item in truth.boxes]
    if truth.choice is not None:
        return truth.choice
    return truth.text if truth.text is not None else truth.number


def _call_trl(
    name: str,
    function: Callable[..., Any],
    options: Mapping[str, Any],
    wanted: frozenset[str] | None,
    conversational: bool,
    timeout_s: float,
    samples: Sequence[Sample],
    answers: Sequence[Answer],
) -> list[Score]:
    """TRL's call: lists over the batch; beside the row's columns, `samples` and `answers` hold our records.

    Completions are the raw texts, so boxes in them are in the model's coordinates; `answers` has original pixels.
    """
    texts = [answer.raw for answer in answers]
    columns: dict[str, list[Any]] = {
        "prompts": [sample.question for sample in samples],
        "completions": [[{"role": "assistant", "content": t}] for t in texts] if conversational else texts,
        "problem": [sample.question for sample in samples],
        "solution": [plain_truth(sample.truth) for sample in samples],
        "task": [sample.task for sample in samples],
        "samples": list(samples),
        "answers": list(answers),
    }
    for key in {key for sample in samples for key in sample.columns}:
        if key not in ("prompts", "completions", "samples", "answers"):
            columns[key] = [sample.columns.get(key) for sample in samples]
    result = function(**{k: v for k, v in columns.items() if wanted is None or k in wanted} | dict(options))
    if inspect.iscoroutine(result):
        # In a thread, because this one may run a loop; left behind where it does not let itself be cancelled.
        result = call_in_thread(partial(asyncio.run, asyncio.wait_for(result, timeout_s)), None)
    return [as_score(name, value) for value in result]


def _call_verl(
    name: str, function: Callable[..., Any], options: Mapping[str, Any], sample: Sample, answer: Answer
) -> Score:
    truth = sample.columns.get("ground_truth")
    if truth is None and isinstance(sample.columns.get("reward_model"), Mapping):
        truth = sample.columns["reward_model"].get("ground_truth")
    extra = sample.columns.get("extra_info")
    arguments = {
        "data_source": sample.source,
        "solution_str": answer.raw,
        "ground_truth": plain_truth(sample.truth) if truth is None else truth,
        "extra_info": dict(extra) if isinstance(extra, Mapping) else {"id": sample.id, "question": sample.question},
    }
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return as_score(name, function(**{k: v for k, v in arguments.items() if takes_any or k in parameters}, **options))
