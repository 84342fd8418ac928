"""mkdocs: README, CONTRIBUTING and CHANGELOG become pages, and files that a page links outside docs/ come along."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the root, and the linked files of the repository under `repository/`."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_LINK.sub(lambda match: f"]({_from_root(match[1])})", text)))
    for file in [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in _LINK.findall(file.read_text(encoding="utf-8")):
            target = (file.parent / link.partition("#")[0]).resolve()
            if target.is_file() and not target.is_relative_to(ROOT / "docs") and target.name not in PAGES:
                uri = f"repository/{target.relative_to(ROOT).as_posix()}"
                if files.get_file_from_path(uri) is None:
                    files.append(File.generated(config, uri, content=target.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links that leave docs/ to the copies on the site."""
    here = (ROOT / "docs" / page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        path = (here / target).resolve()
        if not target or re.match(r"\w+:", target) or path.is_relative_to(ROOT / "docs") or not path.is_file():
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}{PAGES.get(name, f'repository/{name}')}{hash_}{anchor})"

    return _LINK.sub(moved, markdown)


def _from_root(link: str) -> str:
    """A link of a page at the root as it is from docs/: other pages of the root have their new names."""
    if re.match(r"\w+:|#", link):
        return link
    name, hash_, anchor = link.partition("#")
    return PAGES.get(name, name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}") + hash_ + anchor
