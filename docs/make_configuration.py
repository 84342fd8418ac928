"""Write docs/configuration.md from src/vlm_r1/config.py: python docs/make_configuration.py"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vlm_r1.config import DataSource, Recipe, ScenesSource, Section

PAGE = Path(__file__).with_name("configuration.md")

HEAD = """# Configuration

<!-- Made by docs/make_configuration.py from src/vlm_r1/config.py. Change the settings there, then run the script. -->

A recipe is a YAML file with the sections below. Every key has a default, so a recipe names only what it changes:

```yaml
model: {path: runs/base/final}
data:
  train:
    - {path: data/train.jsonl, image_root: data/images}
rewards: {parts: {iou: 1.0, format: 0.5}}
rl: {group_size: 16}
run: {dir: runs/mine, steps: 200}
```

Settings on the command line replace the recipe's. They are dotted, their values are YAML, and an item of a list is
named by its number:

```bash
vlm-r1 train my.yaml rl.group_size=8 'rewards.parts={iou: 1.0}' data.train.0.sampling=first:100
```

| rule | |
|---|---|
| YAML | version 1.2: `no` and `on` are strings, `1e-6` is a number; a key given twice is an error |
| a wrong key | is an error that names the key, its line and the nearest valid one; so is TRL's name for a setting |
| a wrong type | is an error: a number in quotes is a string, `1` is taken for `1.0` and not the other way round |
| relative paths | start from the folder in which the command runs; images from `image_root` |
| what a run used | is in `config.yaml` of its run folder, every default written out; that file is a recipe too |
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(), encoding="utf-8")


def render() -> str:
    """The page as Markdown."""
    sections = {name: found for name, f in Recipe.model_fields.items() if (found := _section(f.annotation))}
    parts = [HEAD, _table("The top", "A recipe's own key; all others stand in a section.", "", Recipe)]
    for name, section in sections.items():
        parts.append(_table(f"`{name}`", _doc(section), f"{name}.", section))
        if name == "data":
            where = "An item of `data.train` or an entry of `data.eval`. See [Your data](data.md)."
            parts.append(_table("A source", f"{_doc(DataSource)} {where}", "", DataSource))
            parts.append(_table("`scenes` of a source", _doc(ScenesSource), "scenes.", ScenesSource))
    return "\n".join(parts)


def _table(title: str, about: str, prefix: str, section: type[Section]) -> str:
    rows = [
        f"| `{prefix}{name}` | {_type(f.annotation)}{_limits(f)} | {_default(f)} | {_cell(f.description or '')} |"
        for name, f in section.model_fields.items()
        if prefix or section is not Recipe or _section(f.annotation) is None
    ]
    return f"## {title}\n\n{about}\n\n| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _doc(section: Any) -> str:
    return " ".join((section.__doc__ or "").split())


def _section(annotation: Any) -> type[Section] | None:
    """The section that an annotation stands for, be it `RLConfig` or `LoraConfig | None`."""
    return next((part for part in (annotation, *get_args(annotation)) if _is_section(part)), None)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _type(annotation: Any) -> str:
    """An annotation in the words of YAML."""
    names = {bool: "true or false", int: "integer", float: "number", str: "string", Any: "any value"}
    if annotation in names:
        return names[annotation]
    if _is_section(annotation):
        return "a source" if annotation is DataSource else "mapping"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in arguments)
    if origin is list:
        return f"list of: {_type(arguments[0])}"
    if origin is dict:
        return f"mapping: name to {_type(arguments[1])}"
    raise TypeError(f"no words for the type {annotation}")


def _limits(field: FieldInfo) -> str:
    words = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}
    found = [
        text.format(_number(value))
        for mark, text in words.items()
        for value in (getattr(part, mark, None) for part in field.metadata)
        if value is not None
    ]
    return f", {' and '.join(found)}" if found else ""


def _number(value: float) -> str:
    power = value.bit_length() - 1 if isinstance(value, int) else 0
    return f"2**{power}" if power > 15 and value == 1 << power else f"{value:g}"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "required" if value is PydanticUndefined else f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """A value as it is written in a recipe, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, list) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main()
