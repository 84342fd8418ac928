"""The reward for mathematics: equality of expressions, decided by math-verify in a process that can be killed."""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

from vlm_r1.errors import RewardError
from vlm_r1.prompts.parse_values import number_text, plain, read_number
from vlm_r1.records import Answer, Sample, Score
from vlm_r1.rewards.common import failed, not_scorable, scored
from vlm_r1.rewards.math_worker import ENVIRONMENT, WORD
from vlm_r1.rewards.text import fold_text

MAX_MATH_CHARS = 1000
"""A longer answer is compared as text alone."""

START_S = 120.0
"""Longest wait for the worker to load the computer algebra."""

_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_DOLLARS = re.compile(r"\$+([^$]+)\$+")
_OR = re.compile(r"\b(?:or|either)\b", re.IGNORECASE)
# Powers of powers, huge exponents and factorials of more than three digits: not worth a time-out each.
_HUGE = re.compile(
    r"(?:\^|\*\*)\s*\{?[^{}\s]{0,40}?(?:\^|\*\*|!)|(?:\^|\*\*)\s*[{(]?\s*\d{4,}|\d{4,}\s*\)?\s*!|!\s*\)*\s*!"
)


class Worker:
    """The comparing process: started when first needed, killed when it takes too long, then started again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, true: str, text: str, timeout_s: float) -> bool:
        """Are two results equal? Raises `TimeoutError`, and `RewardError` where the process cannot be started."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            try:
                reply = self._ask(json.dumps([true, text]), timeout_s)
            except BaseException:
                # Its reply would be taken for that to the next request.
                self.close()
                raise
        if reply is None:
            self.close()
            raise TimeoutError(f"took more than {timeout_s:g} s")
        return bool(json.loads(reply))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        # -P: the folder of the script holds modules whose names others may mean.
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self._ask(None, START_S) is None:
            self.close()
            raise RewardError(
                "reward math: its worker did not start; is math-verify installed? Try: pip install math-verify"
            )

    def _ask(self, request: str | None, timeout_s: float) -> str | None:
        """One line in, one line out; None where the process ended or was killed for taking too long."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            if request is not None:
                process.stdin.write(request + "\n")
                process.stdin.flush()
            return process.stdout.readline() or None
        except BrokenPipeError:
            return None
        finally:
            timer.cancel()


_worker = Worker()
atexit.register(_worker.close)


@lru_cache(maxsize=16384)
def _equal(true: str, text: str, timeout_s: float) -> bool | None:
    """Remembered, time-outs (None) as well: a group of answers repeats itself."""
    try:
        return _worker.equal(true, text, timeout_s)
    except TimeoutError:
        return None


def _hedged(text: str, true: str) -> bool:
    """Does an answer name several results where the truth names one?"""
    boxed = {fold_text(part) for part in _BOXED.findall(text)}
    if boxed:
        return len(boxed) > 1
    if _OR.search(text) and not _OR.search(true):
        return True
    if len({fold_text(part) for part in _DOLLARS.findall(text)}) > 1:
        return True
    # The numbers of a matrix are one result.
    matrices = {match.group() for match in ENVIRONMENT.finditer(" ".join(text.split()))}
    several = len(matrices) > 1 if matrices else read_number(text)[1] == "ambiguous"
    return several and bool(WORD.search(plain(text)))


def math(sample: Sample, answer: Answer, *, timeout_s: float = 3.0) -> Score:
    """1 where answer and truth are mathematically equal (math-verify, truth first), else 0: no partial credit.

    Equal texts are equal without algebra. Several different results in one answer score 0, as do expressions that
    take more than `timeout_s` seconds or are plainly too large. Raises `RewardError` where the worker cannot start.
    """
    truth = sample.truth
    true = truth.text if truth.text is not None else None if truth.number is None else number_text(truth.number)
    if true is None:
        return not_scorable("math", "the sample has no true result")
    if isinstance(answer.value, (int, float)):
        text = number_text(answer.value)
    elif isinstance(answer.value, str):
        text = answer.value
    else:
        return failed("math", answer)
    if fold_text(text, case=True) == fold_text(true, case=True):
        return scored("math", 1.0)
    if len(text) > MAX_MATH_CHARS:
        return scored("math", 0.0, "the expression is too large to evaluate")
    if _hedged(text, true):
        return scored("math", 0.0, "ambiguous: the answer names more than one result")
    if _HUGE.search(text):
        return scored("math", 0.0, "the expression is too large to evaluate")
    equal = _equal(true, text, timeout_s)
    if equal is None:
        return scored("math", 0.0, f"timeout: the comparison took more than {timeout_s:g} s")
    return scored("math", float(equal))
