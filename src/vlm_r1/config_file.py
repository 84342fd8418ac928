"""YAML and dotted overrides become a `Recipe`; what is wrong is named with its file and line.

The YAML read here is 1.2's core schema: `no` and `on` are words, `1e-6` is a number, `12:30` is a string. A key that is
given twice is an error, and so are the tags of YAML's other types. It is the only reader of YAML in the package.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from vlm_r1.config import Recipe
from vlm_r1.config_keys import unknown_key
from vlm_r1.config_section import Section
from vlm_r1.errors import ConfigError, half_character, shown

S = TypeVar("S", bound=Section)

Keys = tuple[str | int, ...]
"""The way to a setting: `("data", "train", 0, "scenes")`."""

COMMAND_LINE = "command line"

MAX_VALUES = 20_000
"""Values in a file, those behind an alias counted wherever it stands: a few hundred bytes can be billions of them."""
MAX_CHARS = 500_000
"""Characters in a file."""

EITHER: dict[Keys, str] = {("run", "steps"): "epochs", ("run", "epochs"): "steps"}
"""Settings of which a recipe has one: on the command line one takes the place of the other."""

_FLOAT = re.compile(
    r"""[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$
    |[-+]?[0-9]+[eE][-+]?[0-9]+$
    |[-+]?\.(?:inf|Inf|INF)$
    |\.(?:nan|NaN|NAN)$""",
    re.VERBOSE,
)
_SCALARS = (
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$"), "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "int", "float", "str", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with 1.2's scalars in the place of 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's class attribute)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper that also quotes a string which `_Loader` would read as a number."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    unusual_breaks = any(character in text for character in "\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if unusual_breaks else None)


_Dumper.add_representer(str, _represent_text)
for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _pattern, list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<$"), ["<"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides, whose values are YAML.

    Raises `ConfigError` with every problem found, one a line, each with its place (`file:line` or `command line`).
    """
    return load_section(Recipe, path, overrides)


def load_section(section: type[S], path: str | Path, overrides: Sequence[str] = ()) -> S:
    """Read a YAML file whose top is a section of another kind than a recipe; errors as of `load_config`."""
    values, places = _read(Path(path))
    for override in overrides:
        _override(values, places, override)
    try:
        return section.model_validate(values, strict=True)
    except ValidationError as error:
        lines = [_explain(problem, places, str(path), section) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(sorted(lines, key=_line_number))) from None


def resolved_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_config` reads back to an equal recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_value(text: str) -> Any:
    """A value given on the command line, read as YAML. Raises `ConfigError`."""
    return parse_yaml(text, COMMAND_LINE)


def _read(path: Path) -> tuple[dict[str, Any], dict[Keys, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such recipe. Recipes are YAML files; vlm-r1 init writes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); a recipe is a YAML file in UTF-8") from None
    places: dict[Keys, str] = {}
    values = parse_yaml(text, str(path), places)
    if values is None:
        raise ConfigError(f"{path}: is empty; a recipe names at least data.train (vlm-r1 init writes one that does)")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {_say(values)}; a recipe is a mapping of sections such as model, data and rl")
    return values, places


def parse_yaml(text: str, name: str, places: dict[Keys, str] | None = None) -> Any:
    """YAML text to plain values; notes the place of every key in `places`. `name` is what errors call the text.

    Raises `ConfigError` for what is not YAML, is larger than a recipe can be, or holds half a character.
    """
    if len(text) > MAX_CHARS:
        raise ConfigError(f"{name}: has {len(text)} characters, more than {MAX_CHARS}; write fewer")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(node, (), name, {} if places is None else places, ())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and places is not None else ""
        raise ConfigError(f"{name}{line}: is not valid YAML: {error.problem}") from None
    except RecursionError:
        raise ConfigError(f"{name}: is not valid YAML: too deeply nested") from None
    except (yaml.YAMLError, ValueError, LookupError) as error:  # the last two: a text under a number's tag
        raise ConfigError(f"{name}: is not valid YAML: {error}") from None


def _walk(node: yaml.Node, keys: Keys, name: str, places: dict[Keys, str], above: tuple[yaml.Node, ...]) -> None:
    """Record where each key stands; refuse keys given twice, anchors that contain themselves, and too many values."""
    here = f"{name}:{node.start_mark.line + 1}"
    if any(node is outer for outer in above):
        raise ConfigError(f"{here}: an alias (*) stands inside its own anchor (&)")
    places.setdefault(keys, here)
    if len(places) > MAX_VALUES:
        raise ConfigError(f"{here}: more than {MAX_VALUES} values, aliases (*) followed; write fewer")
    if node.tag not in _TAGS:
        raise ConfigError(f"{here}: the tag {node.tag} is not one of a recipe; leave it out")
    if isinstance(node, yaml.ScalarNode) and (half := half_character(node.value)):
        raise ConfigError(f"{here}: {half}; write the whole character, or leave it out")
    above = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*keys, index), name, places, above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[Hashable, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{name}:{line}: a key must be a name, got a list or a mapping")
            if key.value in seen:
                first = seen[key.value]
                raise ConfigError(f'{name}:{line}: key "{key.value}" is given twice (first in line {first}); keep one')
            seen[key.value] = line
            places[(*keys, key.value)] = f"{name}:{line}"
            _walk(value, (*keys, key.value), name, places, above)


def _override(values: dict[str, Any], places: dict[Keys, str], override: str) -> None:
    """Set one `section.key=value` in `values`, making the sections on the way to it."""
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(
            f'{COMMAND_LINE}: "{override}" is not an override; write section.key=value, as in rl.group_size=16'
        )
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"{error} (in {override!r}); put a string in quotes: {dotted}='\"...\"'") from None
    keys: Keys = ()
    at: Any = values
    for position, name in enumerate(names):
        last = position == len(names) - 1
        step: str | int = name
        if isinstance(at, list):
            if not name.isdecimal() or int(name) >= len(at):
                raise ConfigError(
                    f'{COMMAND_LINE}: "{override}": {_dotted(keys)} is a list of {len(at)}; '
                    f'give an index from 0 to {len(at) - 1}, not "{name}"'
                )
            step = int(name)
        elif not isinstance(at, dict):
            raise ConfigError(f'{COMMAND_LINE}: "{override}": {_dotted(keys)} is {_say(at)} and has no key "{name}"')
        keys = (*keys, step)
        if last:
            at[step] = value
            if keys in EITHER:
                at.pop(EITHER[keys], None)
        elif isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
            places.setdefault(keys, COMMAND_LINE)
        at = at[step]
    for stale in [known for known in places if known[: len(keys)] == keys]:
        del places[stale]
    places[keys] = COMMAND_LINE


def _explain(problem: Mapping[str, Any], places: Mapping[Keys, str], path: str, section: type[Section]) -> str:
    """One of pydantic's problems as a line: the place, the key, the value and what is expected."""
    keys: Keys = tuple(problem["loc"])
    near = keys
    while near and near not in places:
        near = near[:-1]
    place = places.get(near, path)
    if problem["type"] == "extra_forbidden":
        return f"{place}: {unknown_key(keys, section)}"
    if problem["type"] in {"value_error", "assertion_error"}:
        return f"{place}: {_dotted(keys) or 'the file'}: {problem['ctx']['error']}"
    if problem["type"] in {"model_type", "model_attributes_type", "dict_type"}:
        return f"{place}: {_dotted(keys)}: must be a mapping of keys; got {_say(problem['input'])}"
    must = problem["msg"].replace("Input should be", "must be").replace("a valid string", "a string")
    return f"{place}: {_dotted(keys)}: {must}; got {_say(problem['input'])}"


def _line_number(message: str) -> int:
    found = re.match(r".*?:(\d+): ", message)
    return int(found[1]) if found else 0


def _dotted(keys: Keys) -> str:
    return ".".join(str(key) for key in keys)


def _say(value: Any) -> str:
    """A value as YAML people know it, cut short: `null`, `true`, `"text" (a string)`, `a list`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    if isinstance(value, str):
        return f'"{value if len(value) <= 60 else value[:57] + "..."}" (a string)'
    if isinstance(value, dict):
        return f"a mapping ({', '.join(map(str, list(value)[:4]))}{', ...' if len(value) > 4 else ''})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{shown(value, 60)} ({'an integer' if isinstance(value, int) else 'a number'})"
