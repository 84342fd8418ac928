"""A time limit for one call."""

from __future__ import annotations

import contextvars
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


AGAIN_S = 0.1
"""Seconds between two interruptions of a call that goes on after the first."""


class _TimeUp(BaseException):
    """Raised inside the limited call; not an `Exception`, so that the call cannot swallow it by accident."""


def call_limited(call: Callable[[], T], seconds: float) -> T:
    """`call()`, or `TimeoutError` once `seconds` have passed, whatever a late call returns or raises.

    In the main thread a timer signal interrupts Python code where it stands, and again where a bare `except` caught
    that. Elsewhere signals do not exist: the call runs in a thread of its own, which is left behind if it does not end
    in time. An outer timer keeps running.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return call_in_thread(call, seconds)
    here, tracer, start = sys._getframe(), sys.gettrace(), time.monotonic()
    late = False

    def again(frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            raise _TimeUp
        return again

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal late
        late = True
        if frame is here:
            return
        # The next line raises too: in the body of the `except` that caught this, beyond the reach of its `try`. Not in
        # frames made later: they may be those of a destructor, which cannot raise.
        sys.settrace(lambda *event: None)
        while frame is not None and frame is not here:
            frame.f_trace, frame = again, frame.f_back
        raise _TimeUp

    handler = signal.signal(signal.SIGALRM, ring)
    outer, interval = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_S)
    try:
        result = call()
    except BaseException as error:
        if not late or isinstance(error, KeyboardInterrupt):
            raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if late:
            sys.settrace(tracer)
        signal.signal(signal.SIGALRM, handler)
        if outer > 0:
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, outer - (time.monotonic() - start)), interval)
    if late or time.monotonic() - start > seconds:  # the call may use the same timer itself
        raise TimeoutError(f"took more than {seconds:g} s")
    return result


def call_in_thread(call: Callable[[], T], seconds: float | None) -> T:
    """As `call_limited`, in a thread of its own, so that calls which wait in system code are left behind too."""
    result: list[T] = []
    error: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            result.append(call())
        except BaseException as caught:
            error.append(caught)
        done.set()

    threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True).start()
    done.wait(seconds)
    if error:
        raise error[0]
    if not result:
        raise TimeoutError(f"took more than {seconds:g} s")
    return result[0]
