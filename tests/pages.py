"""Reading the pages under docs/: fenced blocks, tables and the names in them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TOURS = ("quick-start.md", "your-own-data.md")
"""Pages whose commands need what the commands before them made: test_docs_tours.py runs them in order."""


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), flags=re.DOTALL | re.MULTILINE)


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the header first, the line of dashes left out."""
    found: list[list[list[str]]] = []
    inside = False
    for line in re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE).splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            found.append([])
            inside = True
        if not re.fullmatch(r"[|\s:-]+", line):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def table(page: str, *head: str) -> list[list[str]]:
    """The rows of the one table whose header begins with these cells."""
    [found] = [rows for rows in tables(page) if rows[0][: len(head)] == list(head)]
    return found[1:]


def names(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def first_column(page: str, *head: str) -> list[str]:
    """The names in the first column of a table."""
    return [name for row in table(page, *head) for name in names(row[0])]


def options(cell: str) -> dict[str, str]:
    """The options in a cell, written as `name` (default)."""
    return dict(re.findall(r"`(\w+)` \(([^)]*)\)", cell))


def plain(value: object) -> str:
    """A default as the pages write it."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return '""' if value == "" else str(value)
