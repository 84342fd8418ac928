"""`make docs`: the site is built without a warning, and every link on it leads to a file and a place of the site."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed; it comes with the extra dev")


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Page(HTMLParser):
    """Where a page's links go, what it loads, and the places that it has."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places.add(attrs.get("id"))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        if tag in ("img", "script", "link") and (found := attrs.get("src") or attrs.get("href")):
            self.loads.append(found)


def test_every_link_leads_somewhere(site):
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in site.rglob("*.html")}
    assert len(pages) > 25
    broken = []
    for file, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or file.name == "404.html":
                continue
            target = file if not parts.path else (file.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            anchored = parts.fragment and target in pages
            if not target.is_file() or (anchored and unquote(parts.fragment) not in pages[target].places):
                broken.append((str(file.relative_to(site)), link))
    assert not broken


def test_the_site_asks_for_nothing_elsewhere(site):
    for file in site.rglob("*.html"):
        outside = [link for link in Page(file.read_text(encoding="utf-8")).loads if re.match(r"(https?:)?//", link)]
        assert not outside, file


def test_every_page_and_the_readme_are_on_it(site, root):
    for page in (root / "docs").rglob("*.md"):
        name = page.relative_to(root / "docs").with_suffix("")
        name = name.parent if name.name == "README" else name
        assert (site / name / "index.html").is_file(), f"{name}: add it to the nav of mkdocs.yml"
    assert (site / "repository" / "examples" / "cluster" / "slurm.sbatch").is_file()
