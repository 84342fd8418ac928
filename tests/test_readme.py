"""The README's commands are commands, its recipes and files exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from vlm_r1.cli import app
from vlm_r1.config_file import load_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shell_lines() -> list[tuple[str, str]]:
    """(page, command) of each command in a bash block; a line that ends in a backslash goes on in the next."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.strip().removeprefix("$ ")
                if command and not command.startswith("#"):
                    found.append((page.name, command))
    return found


LINES = shell_lines()


def words(command: str) -> list[str]:
    return shlex.split(command.split("&&")[-1].split("|")[0], comments=True)


def test_the_readme_shows_how_to_start():
    commands = [command for page, command in LINES if page == "README.md"]
    assert any("make demo" in command for command in commands)
    assert any(command.startswith("vlm-r1 train") for command in commands)


@pytest.mark.parametrize(("page", "line"), [pair for pair in LINES if "vlm-r1 " in pair[1]], ids=str)
def test_a_command_on_a_page_parses(page, line):
    arguments = words(line[line.index("vlm-r1 ") :])[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert arguments and arguments[0] in command.commands, f"{page}: no such command in: {line}"
        command = command.commands[arguments.pop(0)]
    context = command.make_context("vlm-r1", list(arguments), resilient_parsing="--help" in arguments)
    recipe = context.params.get("recipe")
    if recipe is not None:
        known = str(recipe).startswith("recipes/")
        assert load_config(ROOT / recipe if known else some_recipe(), context.params["overrides"] or [])


def some_recipe() -> Path:
    """Stands in for the reader's own file, so that the overrides beside it are still checked."""
    return min((ROOT / "recipes" / "paper").glob("*.yaml"))


@pytest.mark.parametrize(("page", "line"), [p for p in LINES if re.search(r"\bmake \w", p[1])], ids=str)
def test_a_make_target_on_a_page_exists(page, line):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    wanted = [word for word in words(line[line.index("make ") :])[1:] if "=" not in word]
    assert set(wanted) <= set(targets), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text)
    local = [a or b for a, b in links if not re.match(r"https?:|#|mailto:", a or b)]
    missing = [link for link in local if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing
