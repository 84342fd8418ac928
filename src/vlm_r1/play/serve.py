"""`vlm-r1 play`: the playground served on this computer until Ctrl-C."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from vlm_r1.report.web import launch, private_folder, refuse_taken, require_gradio, wait_for_the_end


def play(
    models: Sequence[str],
    image_root: Path | None = None,
    port: int | None = None,
    *,
    tools: Sequence[str] = (),
    open_browser: bool = False,
) -> None:
    """Load the models, serve the page, and return when the user ends it.

    Raises `UserError` where gradio is not installed, the image root is not a folder or the port is taken, and
    `ModelError` for a model that cannot be loaded; nothing is served then.
    """
    require_gradio()
    refuse_taken(port)  # before a model is loaded
    from PIL import Image

    from vlm_r1.play.answers import load_speaker
    from vlm_r1.play.images import Images
    from vlm_r1.play.page import build_page, play_css
    from vlm_r1.play.playground import Playground

    # The package has a limit of its own.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with private_folder() as folder:
        images = Images(folder, image_root)
        loaded = {path: load_speaker(path, tools) for path in dict.fromkeys(models)}
        playground = Playground([loaded[path] for path in models], images)
        page = build_page(playground)
        try:
            url = launch(page, folder, port=port, css=play_css(), open_browser=open_browser, uploads=True)
            print(f"playground: {url} (Ctrl-C ends it)", flush=True)
            wait_for_the_end()
        finally:
            playground.close()
            page.close(verbose=False)
