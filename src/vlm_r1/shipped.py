"""What comes with the package beside its code: the recipes, which `vlm-r1 init` copies, and the pages of docs/."""

from __future__ import annotations

import json
import re
from importlib import resources
from itertools import islice
from pathlib import Path

from vlm_r1.config import Recipe, ScenesSource
from vlm_r1.config_file import load_config
from vlm_r1.data.scenes import load_scenes
from vlm_r1.errors import ConfigError, UserError, nearest
from vlm_r1.rewards.plugins import plain_truth

ROWS = 4
"""Example rows beside a recipe that is written."""
_MENTIONED = re.compile(r"recipes/[\w./-]*?([\w.-]+\.(?:yaml|py|sh))")


def shipped(folder: str) -> Path:
    """A folder of the repository: a wheel holds it inside the package."""
    inside = Path(str(resources.files("vlm_r1"))) / folder
    return inside if inside.is_dir() else inside.parents[2] / folder


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe: `demo`, and the others by their folder and name (`paper/rec`)."""
    folder = shipped("recipes")
    files = sorted(file for part in ("scenes", "paper") for file in (folder / part).glob("*.yaml"))
    named = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
    return {"demo": Path(str(resources.files("vlm_r1") / "assets" / "demo.yaml"))} | named


def write_recipe(name: str, folder: Path) -> list[Path]:
    """Copy a recipe into a folder, with the files that it names and, in `NAME-data/`, rows in the format of its data.

    `name` may leave out the folder where that is clear (`rec`). Returns what was written. Raises `ConfigError` for an
    unknown name, `UserError` where a file is there already or cannot be written.
    """
    known = recipes()
    found = [full for full in known if name in (full, full.rpartition("/")[2])]
    if len(found) != 1:
        raise ConfigError(f'there is no recipe "{name}": {nearest(name, known)}')
    source = known[found[0]]
    text = source.read_text(encoding="utf-8")
    beside = [source.parent / file for file in dict.fromkeys(_MENTIONED.findall(text)) if not file.endswith(".yaml")]
    target, data = folder / source.name, folder / f"{source.stem}-data"
    copies = {
        target: _adapted(text, data.name),
        **{folder / f.name: _plain_names(f.read_text(encoding="utf-8")) for f in beside},
    }
    for path, content in {**copies, data: ""}.items():
        if path.is_dir() or (path.is_file() and path.read_text(encoding="utf-8") != content):
            raise UserError(f"{path}: is there already; remove it, or give another folder with --out")
    try:
        data.mkdir(parents=True)
        for path, content in copies.items():
            path.write_text(content, encoding="utf-8")
        _write_rows(load_config(source), found[0], data)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); give another with --out") from None
    return [*copies, data / "rows.jsonl"]


def page(name: str) -> str:
    """The text of a page of docs/. Raises `UserError` for an unknown one."""
    pages = {file.stem: file for file in shipped("docs").glob("*.md")}
    if name not in pages:
        raise UserError(f'there is no page "{name}": {nearest(name, pages)}')
    return pages[name].read_text(encoding="utf-8")


def _plain_names(text: str) -> str:
    """The text with files of recipes/ named as they lie side by side."""
    return _MENTIONED.sub(r"\1", text)


def _adapted(text: str, data: str) -> str:
    """The recipe as it stands in a folder of its own, with a word on the format of its data behind its header."""
    header = re.match(r"(?:#.*\n)*", text)
    assert header is not None
    told = (
        f"#\n# Rows of your own data have the form of those in {data}/rows.jsonl; to train on these instead:\n"
        f"#   data.train: [{{path: {data}/rows.jsonl}}]\n"
    )
    return _plain_names(header[0] + told + text[header.end() :])


def _write_rows(recipe: Recipe, name: str, folder: Path) -> None:
    """Rows of generated scenes, of the kind that the recipe asks about, as a data file with its images."""
    sources = [source.scenes for source in (*recipe.data.train, *recipe.data.eval.values()) if source.scenes]
    kinds = {"detect": 1.0} if "ovd" in name else {"attribute": 1.0}
    scenes = sources[0] if sources else ScenesSource(questions=kinds)
    lines = []
    for number, sample in enumerate(islice(load_scenes(scenes), ROWS), start=1):
        image = f"{number}.png"
        sample.images[0].open().save(folder / image)
        boxes = sample.truth.boxes
        solution = list(boxes[0].box) if boxes and sample.task == "rec" else plain_truth(sample.truth)
        row = {"image": image, "problem": sample.question, "solution": solution, "task": sample.task}
        thought = {"think": sample.think} if recipe.method == "sft" and sample.think else {}
        lines.append(json.dumps(row | thought, ensure_ascii=False) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
