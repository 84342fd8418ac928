import pytest

from vlm_r1.rewards.format import format_reward


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("<think>a</think><answer>b</answer>", 1, 1),
        ("\n<think>a</think>\n<answer>b</answer>\n", 1, 1),
        ("<think></think><answer></answer>", 1, 1),
        ("<answer>b</answer>", 0, 1),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0, 1),
        ("<think>a</think>so <answer>b</answer>", 0, 1),
        ("<think>a</think><think>a</think><answer>b</answer>", 0, 1),
        ("<think>a</think><answer>b", 0, 0),
        ("<think>a</think>b", 0, 0),
        ("", 0, 0),
    ],
)
def test_strict_and_lenient_format(case, text, strict, lenient):
    sample, answer = case("text", text, wrap=False)
    assert format_reward(sample, answer).total == strict
    assert format_reward(sample, answer, strict=False).total == lenient


def test_the_fault_is_named(case):
    score = format_reward(*case("text", "<answer>b</answer>", wrap=False))
    assert score.notes == ("there is no <think> block",)
