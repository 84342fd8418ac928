import re

import pytest

from vlm_r1.config import RewardConfig
from vlm_r1.rewards import mathematics
from vlm_r1.rewards.mathematics import Worker, math
from vlm_r1.rewards.rubric import build_rubric


@pytest.mark.parametrize(
    ("true", "written", "value"),
    [
        ("1/2", "0.5", 1),
        (r"\frac{1}{2}", r"$\frac12$", 1),
        ("x^2+2x+1", "(x+1)^2", 1),
        (r"2\sqrt{3}", r"\sqrt{12}", 1),
        ("4", r"\boxed{4}", 1),
        ("4", "the answer is 4", 1),
        ("4", "x = 4", 1),
        ("1000", "1,000", 1),
        ("x=2 or x=3", "x=2 or x=3", 1),
        ("4", "5", 0),
        ("4", "x + 4", 0),
        ("4", "4 or 5", 0),
        ("4", r"\boxed{4} or \boxed{5}", 0),
        ("4", "$4$ or $5$", 0),
        ("4", "first 3 then 4", 0),
        ("-3", "3", 0),
        (r"\frac{1}{3}", "0.3", 0),
        ("4", "$9^{9^{9^{9}}}$", 0),
        ("4", "999999!", 0),
        ("4", "((9!)!)!", 0),
        ("4", "", 0),
        ("4", r"\frac{", 0),
        # White space and line ends inside a formula say nothing.
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", 1),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "\\begin{bmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{bmatrix}", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"The answer is \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}.", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"The answer is $\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$.", 1),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}", 0),
        (r"\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}", "4", 0),
        (
            r"\begin{pmatrix}1&2\end{pmatrix}",
            r"Maybe \begin{pmatrix}1&2\end{pmatrix}, maybe \begin{pmatrix}3&4\end{pmatrix}",
            0,
        ),
        ("1/2", "\\frac{1}\n{2}", 1),
        ("1/2", "$\\frac\n{1}\n{2}$", 1),
        ("1/2", "1\n/\n2", 1),
        ("1/2", "\\frac{1}\n{3}", 0),
    ],
)
def test_mathematics_by_value(case, true, written, value):
    assert math(*case("math", written, text=true)).total == value


def test_a_true_number_is_mathematics_too(case):
    assert math(*case("math", r"\frac{1}{2}", number=0.5)).total == 1
    assert math(*case("number", "0.5", text="1/2")).total == 1


def test_without_a_truth_it_is_not_scorable_and_without_an_answer_it_is_zero(case):
    assert math(*case("math", "x", boxes=[])).total is None
    assert math(*case("math", "4", wrap=False, text="4")).total == 0


@pytest.fixture
def bombs_pass(monkeypatch):
    """Let expressions through that are refused by their looks, to see the second line of defence."""
    monkeypatch.setattr(mathematics, "_HUGE", re.compile("(?!)"))
    mathematics._equal.cache_clear()


def test_an_endless_comparison_is_ended_counted_and_survived(case, bombs_pass):
    made = build_rubric(RewardConfig(parts={"math": 1.0}, timeout_s=0.5))
    made.score(*case("math", "2+2", text="4"))
    score = made.score(*case("math", "$9^{9^{9^{9}}}$", text="4"))
    assert score.total == 0
    assert score.notes == ("math: timeout: the comparison took more than 0.5 s",)
    assert made.counts == {"timeouts/math": 1}
    assert made.score(*case("math", "3+1", text="4")).total == 1


def test_a_worker_that_was_killed_is_started_again():
    worker = Worker()
    try:
        assert worker.equal("4", "2+2", 60)
        worker._process.kill()
        worker._process.wait()
        assert worker.equal("4", "3+1", 60)
        assert not worker.equal("4", "5", 60)
    finally:
        worker.close()
