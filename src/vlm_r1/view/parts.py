"""What the tabs share: quiet events, clicks inside drawn HTML, and messages in place of errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr

from vlm_r1.errors import UserError
from vlm_r1.view import pages

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
"""Settings of every event: nothing flickers while the page is brought up to date."""

Handler = Callable[..., Any]

_ON_LOAD = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (button && !button.disabled) trigger('select', {pick: button.dataset.pick});
});
"""


def drawn(name: str, pick: bool = False) -> gr.HTML:
    """A place for HTML; with `pick`, a click on an element with `data-pick` is a select event that carries it."""
    return gr.HTML(elem_id=name, apply_default_css=False, js_on_load=_ON_LOAD if pick else None)


def picked(event: gr.EventData) -> str:
    """What was picked."""
    return str(event.pick)


def guarded(fill: Callable[[str], tuple[Any, ...]]) -> Callable[[Handler], Handler]:
    """Wrap a handler: what stands in its way (a file that is gone, cut or refused) is said by `fill` instead."""

    def wrap(handler: Handler) -> Handler:
        @functools.wraps(handler)
        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                return handler(*args, **kwargs)
            except (UserError, OSError) as error:
                return fill(pages.notice(str(error)))

        return called

    return wrap


def told(render: Callable[[], str]) -> str:
    """The HTML of `render`, or a message as `guarded` makes it."""
    try:
        return render()
    except (UserError, OSError) as error:
        return pages.notice(str(error))
