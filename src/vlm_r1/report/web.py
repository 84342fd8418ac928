"""What the local web pages share: gradio where it is installed, a look that fetches nothing, a private folder, serving.

A page is served on 127.0.0.1 only, answers no other host name, loads everything from this server and reports nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_r1.errors import UserError

HOST = "127.0.0.1"
MAX_UPLOAD_BYTES = 100 * 2**20

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A proxy must not be asked for this machine's own address.
    "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), HOST])),
}


def require_gradio() -> Any:
    """The gradio package, told to report nothing. Raises `UserError` where it is not installed."""
    os.environ.update(_QUIET)
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the web pages need gradio ({error}); run: pip install 'vlm-r1[ui]'") from None
    return gradio


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that only this user can read, where uploads and drawn images go; deleted at the end, SIGTERM included.

    Build and serve the page inside it.
    """
    folder = Path(tempfile.mkdtemp(prefix="vlm-r1-")).resolve()
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if main else None
    try:
        yield folder
    finally:
        if main:
            signal.signal(signal.SIGTERM, handler)
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def launch(
    page: Any,
    folder: Path,
    *,
    port: int | None = None,
    css: str = "",
    js: str = "",
    open_browser: bool = False,
    uploads: bool = False,
) -> str:
    """Serve a `gradio.Blocks` and return its address; `page.close()` ends it.

    Files in `folder` can be shown, and with `uploads` put there. Without a port the first free one from 7860 on is
    taken. Raises `UserError` where there is none.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from vlm_r1.report.limits import Gate, Limits

    limits = Limits(MAX_UPLOAD_BYTES if uploads else 0)
    # A page of another site whose name is made to point at this machine carries that name as its host.
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    refuse_taken(port)
    try:
        _, url, _ = page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            allowed_paths=[str(folder)],
            max_file_size=MAX_UPLOAD_BYTES,
            app_kwargs={"middleware": [hosts, Middleware(Gate, limits=limits)]},
            theme=theme(),
            # gradio's own `css` drops container queries
            head=f"<style>{css}</style><script>{js}</script>",
        )
    except OSError:  # gradio's own text names its settings
        place = "the ports from 7860 to 7959 are taken" if port is None else f"port {port} cannot be used"
        raise UserError(f"--port: {place} on {HOST}; name another one") from None
    limits.watch(page.server)
    return str(url)


def refuse_taken(port: int | None) -> None:
    """Raise `UserError` where a port that was asked for is taken, or not this user's to take."""
    if port is None:
        return
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise UserError(
            f"--port {port}: {why} on {HOST}; name another port, or leave --port out to take the first free one"
        ) from None


def wait_for_the_end() -> None:
    """Return when the user presses Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def theme() -> Any:
    """The report's colours, in light and dark, with the fonts that the machine has."""
    from gradio import themes

    def pair(name: str, light: str, dark: str) -> dict[str, str]:
        return {name: light, f"{name}_dark": dark}

    found = themes.Default(primary_hue="blue", neutral_hue="slate", font=_SANS, font_mono=_MONO)
    return found.set(
        **pair("body_background_fill", "#f7f8fa", "#12161b"),
        **pair("body_text_color", "#1a2027", "#e6eaee"),
        **pair("body_text_color_subdued", "#5b6672", "#9ba7b4"),
        **pair("block_background_fill", "#ffffff", "#1b2128"),
        **pair("block_border_color", "#dfe3e8", "#2e3740"),
        **pair("block_label_text_color", "#5b6672", "#9ba7b4"),
        **pair("block_title_text_color", "#1a2027", "#e6eaee"),
        **pair("block_info_text_color", "#5b6672", "#9ba7b4"),
        **pair("border_color_primary", "#dfe3e8", "#2e3740"),
        **pair("input_background_fill", "#ffffff", "#12161b"),
        **pair("input_border_color", "#c9d0d8", "#3b4651"),
        **pair("button_primary_background_fill", "#2f6fd6", "#2f6fd6"),
        **pair("button_primary_background_fill_hover", "#245bb4", "#3f7ee3"),
        **pair("button_primary_text_color", "#ffffff", "#ffffff"),
    )


def css_of(*texts: str) -> str:
    """The look that all pages share, with a page's own rules behind it."""
    return "\n".join([_CSS, *texts])


_CSS: str = """
:root { --true: #0b8f54; --pred: #c2530a; --good: #0a7a48; --bad: #b3261e; --bar: #2f6fd6; --tint: #eef2f7; }
.dark { --true: #3ddc91; --pred: #ff9447; --good: #4fd898; --bad: #ff8a80; --bar: #6ea3f7; --tint: #232b34; }
:focus-visible { outline: 2px solid var(--bar) !important; outline-offset: 2px; }
.gradio-container { max-width: 84rem !important; overflow: clip !important; } /* hidden would keep all from sticking */
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""
