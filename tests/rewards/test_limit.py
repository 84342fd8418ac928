import contextlib
import re
import signal
import sys
import threading
import time

import pytest

from vlm_r1.rewards.limit import call_in_thread, call_limited


def spin():
    while True:
        time.sleep(0.001)


@pytest.mark.parametrize("limited", [call_limited, call_in_thread])
def test_results_and_errors_pass_through(limited):
    assert limited(lambda: 7, 5) == 7
    with pytest.raises(KeyError):
        limited(lambda: {}["x"], 5)


@pytest.mark.parametrize("limited", [call_limited, call_in_thread])
def test_a_call_that_waits_is_ended(limited):
    with pytest.raises(TimeoutError, match=r"more than 0\.05 s"):
        limited(lambda: threading.Event().wait(5), 0.05)


def swallow_errors():
    try:
        spin()
    except Exception:
        return "swallowed"


def swallow_all():
    try:
        spin()
    except:  # noqa: E722
        return "swallowed"


def swallow_all_again_and_again():
    while True:
        try:
            spin()
        except:  # noqa: E722
            continue


def swallow_in_finally():
    while True:
        try:
            spin()
        finally:
            continue  # noqa: B012


def raise_another():
    try:
        spin()
    except BaseException:
        raise ValueError("late") from None


def use_the_same_timer():
    signal.setitimer(signal.ITIMER_REAL, 0)
    time.sleep(0.1)


def match_for_ever():
    re.match(r"(a+)+$", "a" * 64 + "b")


@pytest.mark.parametrize(
    "stubborn",
    [
        swallow_errors,
        swallow_all,
        swallow_all_again_and_again,
        swallow_in_finally,
        raise_another,
        match_for_ever,
        use_the_same_timer,
    ],
)
def test_a_call_cannot_swallow_its_limit(stubborn):
    start, tracer = time.monotonic(), sys.gettrace()
    with pytest.raises(TimeoutError):
        call_limited(stubborn, 0.05)
    assert time.monotonic() - start < 2
    assert sys.gettrace() is tracer


def test_no_timer_is_left_on():
    for _ in range(50):
        with contextlib.suppress(TimeoutError):
            call_limited(lambda: sum(range(10_000)), 1e-4)
    time.sleep(0.15)  # a timer left on would ring
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_in_another_thread_the_limit_holds_too():
    result = []

    def work():
        try:
            call_limited(lambda: threading.Event().wait(5), 0.05)
        except TimeoutError as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(3)
    assert len(result) == 1


def test_an_outer_timer_keeps_running():
    rang = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert call_limited(lambda: 1, 5) == 1
        left = signal.getitimer(signal.ITIMER_REAL)[0]
        assert 0 < left <= 0.1
        end = time.monotonic() + 5
        while not rang and time.monotonic() < end:
            time.sleep(0.01)
        assert rang == [True]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
