"""Which keys a recipe has, and which one a wrong key was meant to be."""

from __future__ import annotations

import difflib
from typing import Any, get_args, get_origin

from vlm_r1.config import Recipe, Section
from vlm_r1.errors import nearest


def all_keys(root: type[Section] = Recipe) -> dict[str, str]:
    """Every setting's dotted name -> its description ("" where the name says it all).

    Lists are entered as `[]` and mappings as `{}`: `data.train[].scenes.n`, `data.eval{}.path`.
    """
    found: dict[str, str] = {}
    _collect(root, "", found)
    return found


OTHER_NAMES = {
    "epsilon": "rl.clip_low",
    "epsilon_high": "rl.clip_high",
    "eval_steps": "eval.every",
    "learning_rate": "optim.lr",
    "load_best_model_at_end": "eval.load_best_at_end",
    "max_completion_length": "rollout.max_new_tokens",
    "max_steps": "run.steps",
    "metric_for_best_model": "eval.keep_best",
    "model_name_or_path": "model.path",
    "num_generations": "rl.group_size",
    "num_iterations": "rl.iterations",
    "num_train_epochs": "run.epochs",
    "output_dir": "run.dir",
    "save_steps": "run.save_every",
}
"""What TRL calls a setting -> what it is called here."""


def unknown_key(keys: tuple[str | int, ...], root: type[Section] = Recipe) -> str:
    """What to say about a key that does not exist: its nearest neighbour in its section, or the section it belongs to.

    >>> unknown_key(("rl", "lr"))
    'unknown key "rl.lr": did you mean "optim.lr"?'
    """
    name = str(keys[-1])
    said = f'unknown key "{".".join(str(key) for key in keys)}"'
    elsewhere = [dotted for dotted in all_keys(root) if dotted.rpartition(".")[2] == name]
    if root is Recipe and name in OTHER_NAMES:
        elsewhere = [OTHER_NAMES[name]]
    siblings = list(_section_at(keys[:-1], root).model_fields)
    if not elsewhere:
        leaves = {dotted.rpartition(".")[2]: dotted for dotted in reversed(all_keys(root))}
        close = difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)
        elsewhere = [
            leaves[leaf] for leaf in close if _likeness(leaf, name) > max(_likeness(s, name) for s in siblings)
        ]
    if elsewhere:
        quoted = " or ".join(f'"{dotted}"' for dotted in elsewhere)
        return f"{said}: did you mean {quoted}?"
    return f"{said}: {nearest(name, siblings)}"


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def _collect(section: type[Section], prefix: str, found: dict[str, str]) -> None:
    for name, field in section.model_fields.items():
        dotted = prefix + name
        found[dotted] = field.description or ""
        inner, mark = _inner(field.annotation)
        if inner is not None:
            _collect(inner, f"{dotted}{mark}.", found)


def _inner(annotation: Any) -> tuple[type[Section] | None, str]:
    """The section inside an annotation such as `list[DataSource]` or `ScenesSource | None`, and its mark."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, ""
    mark = {list: "[]", dict: "{}"}.get(get_origin(annotation), "")  # type: ignore[arg-type]
    for argument in get_args(annotation):
        inner, deeper = _inner(argument)
        if inner is not None:
            return inner, mark + deeper
    return None, ""


def _section_at(keys: tuple[str | int, ...], root: type[Section]) -> type[Section]:
    """The section that `keys` lead to; an index of a list or a name in a mapping follows the field that holds it."""
    section = root
    rest = list(keys)
    while rest:
        field = section.model_fields.get(str(rest.pop(0)))
        inner, mark = _inner(field.annotation) if field is not None else (None, "")
        if inner is None:
            return section
        section = inner
        del rest[: len(mark) // 2]
    return section
