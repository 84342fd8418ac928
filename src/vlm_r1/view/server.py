"""`vlm-r1 view`: the page over run folders, served on this computer until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from vlm_r1.errors import CheckpointError
from vlm_r1.report.web import css_of, launch, private_folder, require_gradio, wait_for_the_end
from vlm_r1.view.folder import RunFolder


def view(paths: Sequence[Path], port: int | None = None, *, open_browser: bool = False) -> None:
    """Serve the page over some run folders, and return when the user ends it.

    Raises `CheckpointError` for what is no run folder, and `UserError` where gradio is not installed or the port is
    taken; nothing is served then.
    """
    runs = open_runs(paths)
    require_gradio()
    for run in runs:
        run.metrics()  # read before the first visitor waits for it
    from vlm_r1.view.app import build

    files = resources.files("vlm_r1.view")
    css, js = ((files / name).read_text(encoding="utf-8") for name in ("view.css", "view.js"))
    with private_folder() as folder:
        page = build(runs)
        try:
            url = launch(page, folder, port=port, css=css_of(css), js=js, open_browser=open_browser)
            print(f"{', '.join(run.name for run in runs)}: {url} (Ctrl-C ends it)", flush=True)
            wait_for_the_end()
        finally:
            page.close(verbose=False)


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
