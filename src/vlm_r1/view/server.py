"""`vlm-r1 view`: the page over run folders, served on this computer until Ctrl-C."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vlm_r1.errors import CheckpointError
from vlm_r1.report.runs import is_run, run_folders
from vlm_r1.report.web import css_of, launch, private_folder, require_gradio, wait_for_the_end
from vlm_r1.view.folder import RunFolder


def view(paths: Sequence[Path], port: int | None = None, *, open_browser: bool = False) -> None:
    """Serve the page over some run folders, or over those inside a folder, and return when the user ends it.

    Raises `CheckpointError` for what is not a run folder, and `UserError` where gradio is not installed or the port is
    taken; nothing is served then.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # held-out data of the hub is read from this machine or not at all
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
    """The `gradio.Blocks` over some run folders. Raises `CheckpointError` for what is not a run folder."""
    runs = Runs(paths)
    from vlm_r1.view.app import build

    return build(runs.new)


def page_css() -> str:
    """The page's look."""
    charts = (resources.files("vlm_r1.report") / "templates" / "chart.css").read_text(encoding="utf-8")
    return css_of(charts, (resources.files("vlm_r1.view") / "view.css").read_text(encoding="utf-8"))


def page_js() -> str:
    """The page's script."""
    return (resources.files("vlm_r1.view") / "view.js").read_text(encoding="utf-8")


class Runs:
    """The run folders that were named, and all inside a folder that is none itself, also those that appear later.

    Example: `Runs([Path("runs")]).new()` are all of them, the one written last first; called again, those made since.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._known: dict[Path, str] = {}

    def new(self) -> list[RunFolder]:
        """The runs that were not there before, under names that differ. Raises `CheckpointError` for what is none."""
        found = [run for path in self._paths for run in _runs_of(path, known=bool(self._known))]
        if not self._known and len({run.path for run in found}) < len(found):
            raise CheckpointError(f"{', '.join(map(str, self._paths))}: a run folder is given twice; give each once")
        new = [run for run in found if run.path not in self._known]
        for name in ("{0.name}", "{0.path.parent.name}/{0.path.name}", "{0.path}"):
            names = [name.format(run) for run in new]
            if len({*names, *self._known.values()}) == len(names) + len(self._known):
                break
        for run, found_name in zip(new, names, strict=True):
            run.name = found_name
            self._known[run.path] = found_name
        return new


def _runs_of(path: Path, known: bool) -> list[RunFolder]:
    """The run of a path, or those inside; where runs are known already, none of a path that is gone."""
    inside = [found for found in run_folders(path) if is_run(found)] if path.is_dir() else []
    if inside == [path] or not (inside or known):
        return [RunFolder(path)]
    runs = [RunFolder(found) for found in inside]
    for run, found in zip(runs, inside, strict=True):
        run.name = found.relative_to(path).as_posix()
    return sorted(runs, key=lambda run: (-run.written, run.name))
