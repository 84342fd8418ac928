"""Every recipe parses, and its header says how to run it and what to expect."""

import re
from pathlib import Path

import pytest

from vlm_r1.config_file import load_config
from vlm_r1.lab.study import study_files

ROOT = Path(__file__).resolve().parent.parent
STUDIES = set(study_files(ROOT / "recipes" / "lab").values())
RECIPES = sorted(set((ROOT / "recipes").rglob("*.yaml")) - STUDIES)
COMMAND = {"grpo": "train", "sft": "sft"}


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_a_recipe_parses_and_names_its_data(file):
    recipe = load_config(file)
    assert recipe.data.train or recipe.data.eval
    assert recipe.run.dir.startswith("runs/")


@pytest.mark.parametrize("file", RECIPES, ids=name)
def test_the_header_states_the_command_and_the_number(file):
    header = re.match(r"(?:#.*\n)+", file.read_text(encoding="utf-8"))
    assert header, "a recipe starts with a comment"
    command = COMMAND[load_config(file).method]
    commands = re.findall(r"vlm-r1 (\w+) (\S+)", header[0])
    assert {(c, path) for c, path in commands} & {(command, name(file)), ("eval", name(file))}, commands
    expected = re.search(r"\bexpect(?:ed)?\b.*", header[0], flags=re.IGNORECASE | re.DOTALL)
    assert expected, "the header states what to expect"
    results = re.findall(r"docs/results/\S+\.json", expected[0])
    assert re.search(r"\d\.\d|\d ?%", expected[0]) or results, "a measured number, or the file that holds it"
    assert all((ROOT / result).is_file() for result in results), results
