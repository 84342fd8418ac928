"""docs/troubleshooting.md quotes messages that the package has, of every module that raises one, and real settings."""

import ast
import re
from pathlib import Path

import pytest
from pages import ROOT, names, tables, text

from vlm_r1 import errors
from vlm_r1.config import Recipe
from vlm_r1.config_keys import all_keys

PAGE = "troubleshooting.md"
PACKAGE = ROOT / "src" / "vlm_r1"
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.UserError)}
FILES = {"eval.json"}
"""Written like a setting, and none."""
OLD = {"model.dtype": "float32", "model.autocast": "bf16", "optim.master_weights": True, "rl.reuse_prefill": True}
"""Settings of the release before, which are read with a warning."""
VALUE = "\0"
"""Stands for what a message is filled with."""


def written(node: ast.AST) -> str | None:
    """A string of the source, or None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def strings(module: ast.Module) -> list[str]:
    inside = {id(part) for node in ast.walk(module) if isinstance(node, ast.JoinedStr) for part in node.values}
    lone = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    found = (written(node) for node in ast.walk(module) if id(node) not in inside | lone)
    return [message for message in found if message]


def raises(module: ast.Module) -> bool:
    """Whether a user error, a fault of a row, or a refusal of a setting is made in a module."""
    settings = any("model_validator" in ast.unparse(node) for node in module.body if isinstance(node, ast.ImportFrom))
    wanted = ERRORS | {"Fault"} | ({"ValueError"} if settings else set())
    calls = (node.func for node in ast.walk(module) if isinstance(node, ast.Call))
    return any(isinstance(name, ast.Name) and name.id in wanted for name in calls)


def holds(message: str, quoted: str) -> bool:
    """Whether a message has the quoted pieces, which stand between the page's ellipses, in this order."""
    at = 0
    for piece in filter(None, (part.strip() for part in quoted.split("…"))):
        found = message.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return True


MODULES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}
SAID = {file: strings(module) for file, module in MODULES.items()}
QUOTED = sorted(
    {
        quoted
        for rows in tables(PAGE)
        if rows[0][0].split()[0] in ("message", "warning")
        for row in rows[1:]
        for quoted in names(row[0])
    }
)


def test_the_page_quotes_many_messages():
    assert len(QUOTED) > 120
    assert [quoted for quoted in QUOTED if len(re.sub(r"\W", "", quoted)) < 8] == []


@pytest.mark.parametrize("quoted", QUOTED, ids=str)
def test_a_quoted_message_is_in_the_source(quoted):
    assert any(holds(message, quoted) for messages in SAID.values() for message in messages)


def short(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


@pytest.mark.parametrize("file", [file for file, module in MODULES.items() if raises(module)], ids=short)
def test_a_module_that_raises_user_errors_is_on_the_page(file):
    assert any(holds(message, quoted) for message in SAID[file] for quoted in QUOTED), (
        f"docs/troubleshooting.md quotes no message of {short(file)}: add one, and what to do"
    )


def test_every_setting_of_the_page_exists():
    sections = {key.partition(".")[0] for key in all_keys()}
    shown = re.findall(r"`([a-z_]+)\.([a-z_0-9]+)\b", re.sub(r"^```.*?^```", "", text(PAGE), flags=re.S | re.M))
    used = {f"{section}.{key}" for section, key in shown if section in sections}
    assert len(used) > 30
    assert used - all_keys().keys() - FILES - OLD.keys() == set()


@pytest.mark.parametrize("key", OLD)
def test_an_old_setting_of_the_page_is_read_with_a_warning(key):
    assert key in text(PAGE) and key not in all_keys()
    section, name = key.split(".")
    with pytest.warns(FutureWarning, match=key):
        assert Recipe.model_validate({section: {name: OLD[key]}})


def test_every_metric_of_the_page_is_in_the_table_of_metrics():
    known = {
        name for rows in tables("run-folder.md") if rows[0][0] == "metric" for row in rows for name in names(row[0])
    }
    [symptoms] = [rows for rows in tables(PAGE) if rows[0][0] == "symptom"]
    shown = {name for row in symptoms[1:] for name in names(row[1])}
    patterns = {re.sub(r"NAME|KIND", "[a-zA-Z_]+", name) for name in known}
    assert {n for n in shown - FILES if not any(re.fullmatch(p, n) or n == p for p in patterns | known)} == set()
