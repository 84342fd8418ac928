"""A time limit for one call."""

from __future__ import annotations

import contextvars
import signal
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _TimeUp(BaseException):
    """Raised inside the limited call; not an `Exception`, so that the call cannot swallow it by accident."""


def call_limited(call: Callable[[], T], seconds: float) -> T:
    """`call()`, or `TimeoutError` once `seconds` have passed.

    In the main thread a timer signal interrupts Python code where it stands. Elsewhere signals do not exist: the
    call runs in a thread of its own, which is left behind if it does not end in time. An outer timer keeps running.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return call_in_thread(call, seconds)

    def ring(signum: int, frame: object) -> None:
        raise _TimeUp

    start = time.monotonic()
    handler = signal.signal(signal.SIGALRM, ring)
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _TimeUp:
        raise TimeoutError(f"took more than {seconds:g} s") from None
    finally:
        signal.signal(signal.SIGALRM, handler)
        if outer > 0:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, outer - (time.monotonic() - start)), interval)


def call_in_thread(call: Callable[[], T], seconds: float) -> T:
    """As `call_limited`, in a thread of its own, so that calls which wait in system code are left behind too."""
    result: list[T] = []
    error: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as caught:
            error.append(caught)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    thread.join(seconds)
    if error:
        raise error[0]
    if not result:
        raise TimeoutError(f"took more than {seconds:g} s")
    return result[0]
