"""`vlm-r1 view`: the page over run folders, served on this computer until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vlm_r1.errors import CheckpointError
from vlm_r1.report.web import css_of, launch, private_folder, require_gradio, wait_for_the_end
from vlm_r1.view.folder import RunFolder


def view(paths: Sequence[Path], port: int | None = None, *, open_browser: bool = False) -> None:
    """Serve the page over some run folders, and return when the user ends it.

    Raises `CheckpointError` for what is no run folder, and `UserError` where gradio is not installed or the port is
    taken; nothing is served then.
    """
    require_gradio()
    page = None
    with private_folder() as folder:
        try:
            page = build_page(paths)
            url = launch(page, folder, port=port, css=page_css(), js=page_js(), open_browser=open_browser)
            print(f"viewer: {url} (Ctrl-C ends it)", flush=True)
            wait_for_the_end()
        finally:
            if page is not None:
                page.close(verbose=False)


def build_page(paths: Sequence[Path]) -> Any:
    """The `gradio.Blocks` over some run folders. Raises `CheckpointError` for what is no run folder."""
    runs = open_runs(paths)
    from vlm_r1.view.app import build

    for run in runs:
        run.metrics()  # read before the first visitor waits for it
    return build(runs)


def page_css() -> str:
    """The page's look."""
    return css_of((resources.files("vlm_r1.view") / "view.css").read_text(encoding="utf-8"))


def page_js() -> str:
    """The page's script."""
    return (resources.files("vlm_r1.view") / "view.js").read_text(encoding="utf-8")


def open_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """The runs under names that differ: the folder's, with the one above it where two are equal."""
    runs = [RunFolder(path) for path in paths]
    if len({run.path for run in runs}) < len(runs):
        raise CheckpointError(f"{', '.join(map(str, paths))}: a run folder is given twice; give each once")
    for name in ("{0.path.name}", "{0.path.parent.name}/{0.path.name}", "{0.path}"):
        names = [name.format(run) for run in runs]
        if len(set(names)) == len(names):
            break
    for run, found in zip(runs, names, strict=True):
        run.name = found
    return runs
