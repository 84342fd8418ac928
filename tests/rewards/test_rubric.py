import pytest

from vlm_r1.config import RewardConfig
from vlm_r1.errors import ConfigError, RewardError
from vlm_r1.rewards.registry import REWARDS, TASK_OF_REWARD
from vlm_r1.rewards.rubric import build_rubric

TRUE = (0, 0, 10, 10)
HALF = "[0, 0, 10, 5]"


def rubric(**settings):
    return build_rubric(RewardConfig(**settings))


def test_the_total_is_the_weighted_sum_and_parts_are_kept_unweighted(case):
    score = rubric(parts={"iou": 2.0, "format": 0.5, "repetition": 1.0}).score(*case("rec", HALF, boxes=[TRUE]))
    assert score.total == pytest.approx(2 * 0.5 + 0.5 * 1 + 0)
    assert score.parts == {"iou": 0.5, "format": 1.0, "repetition": 0.0}


def test_a_part_that_is_not_scorable_is_left_out(case):
    settings = {"parts": {"iou": 1.0, "number": 3.0}}
    boxed, numbered, neither = (
        case("rec", HALF, boxes=[TRUE]),
        case("number", "4", number=4.0),
        case("text", "x", text="x"),
    )
    made = rubric(**settings)
    scores = made.score_all(*zip(boxed, numbered, neither, strict=True))
    assert [score.total for score in scores] == [0.5, 3.0, None]
    assert scores[0].parts == {"iou": 0.5, "number": None}
    assert made.counts == {"not_scorable/iou": 2, "not_scorable/number": 2}


def test_the_gate_shuts_the_others_out(case):
    made = rubric(parts={"iou": 1.0, "format": 0.5}, gate="format")
    assert made.score(*case("rec", HALF, boxes=[TRUE])).total == pytest.approx(1.0)
    shut = made.score(*case("rec", f"<answer>{HALF}</answer>", wrap=False, boxes=[TRUE]))
    assert shut.total == 0
    assert shut.parts == {"iou": 0.5, "format": 0.0}
    assert "gate format failed" in shut.notes


def test_a_gate_need_not_be_a_part(case):
    made = rubric(parts={"iou": 1.0}, gate="format")
    shut = made.score(*case("rec", f"<answer>{HALF}</answer>", wrap=False, boxes=[TRUE]))
    assert (shut.total, shut.parts) == (0.0, {"iou": 0.5, "format": 0.0})
    assert made.score(*case("rec", HALF, boxes=[TRUE])).total == 0.5


@pytest.mark.parametrize(("policy", "total"), [("score", 1.5), ("zero", 0.0), ("skip", None)])
def test_what_a_truncated_answer_is_worth(case, policy, total):
    made = rubric(truncated=policy)
    assert made.score(*case("rec", HALF, boxes=[TRUE], truncated=True)).total == total
    assert made.score(*case("rec", HALF, boxes=[TRUE])).total == 1.5


def test_a_sample_chooses_the_reward_of_its_content(case):
    made = rubric(parts={"iou": 2.0, "giou": 1.0, "format": 0.5})
    score = made.score(*case("rec", HALF, boxes=[TRUE], reward="iou_threshold"))
    assert score.parts == {"iou_threshold": 1.0, "format": 1.0}
    assert score.total == pytest.approx(3 * 1 + 0.5)


def test_a_sample_cannot_choose_what_it_likes(case):
    with pytest.raises(RewardError, match=r'sample s1: unknown reward "iuo": did you mean "iou"'):
        rubric().score(*case("rec", HALF, boxes=[TRUE], reward="iuo"))
    with pytest.raises(RewardError, match="unknown reward"):
        rubric().score(*case("rec", HALF, boxes=[TRUE], reward="/tmp/evil.py:run"))


def test_shadow_rewards_are_measured_and_not_counted(case):
    made = rubric(parts={"iou": 1.0}, shadow=["giou", "number"])
    pair = case("rec", HALF, boxes=[TRUE])
    assert made.score(*pair).parts == {"iou": 0.5}
    assert made.shadow(*pair) == {"giou": 0.5, "number": None}


def test_options_reach_their_reward(case):
    made = rubric(parts={"iou_threshold": 1.0}, options={"iou_threshold": {"threshold": 0.9}})
    assert made.score(*case("rec", HALF, boxes=[TRUE])).total == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": {"iuo": 1.0}}, r'unknown reward "iuo": did you mean "iou"'),
        ({"shadow": ["od_mapp"]}, r'unknown reward "od_mapp": did you mean "od_map"'),
        ({"gate": "formt"}, r'unknown reward "formt"'),
        ({"options": {"iou_threshold": {"treshold": 1}}}, r'options.iou_threshold: unknown option "treshold": did you'),
        (
            {"options": {"llm_judge": {"modell": "x"}}},
            r'options.llm_judge: unknown option "modell": did you mean "model"',
        ),
        ({"parts": {}}, "parts is empty"),
    ],
)
def test_mistakes_in_the_recipe_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        rubric(**settings)


@pytest.fixture
def broken(monkeypatch):
    def raising(sample, answer):
        raise KeyError("lost")

    def not_finite(sample, answer):
        from vlm_r1.records import Score

        return Score(total=float("nan"))

    def hanging(sample, answer):
        while True:
            pass

    monkeypatch.setitem(REWARDS, "raising", raising)
    monkeypatch.setitem(REWARDS, "not_finite", not_finite)
    monkeypatch.setitem(REWARDS, "hanging", hanging)


@pytest.mark.parametrize("name", ["raising", "not_finite"])
def test_an_exception_stops_the_run_or_is_counted(case, broken, name):
    pair = case("rec", HALF, boxes=[TRUE])
    with pytest.raises(RewardError, match=rf'reward "{name}" .*\(sample s1\).*on_error: zero'):
        rubric(parts={name: 1.0}).score(*pair)
    made = rubric(parts={name: 1.0, "iou": 1.0}, on_error="zero")
    score = made.score(*pair)
    assert score.total == 0.5
    assert score.parts[name] == 0.0
    assert made.counts == {f"errors/{name}": 1}
    assert any("error" in note for note in score.notes)


def test_a_reward_that_hangs_costs_its_time_and_is_counted(case, broken):
    made = rubric(parts={"hanging": 1.0, "iou": 1.0}, timeout_s=0.05)
    score = made.score(*case("rec", HALF, boxes=[TRUE]))
    assert score.total == 0.5
    assert score.parts["hanging"] == 0
    assert made.counts == {"timeouts/hanging": 1}


def test_every_reward_of_the_table_knows_its_task_or_is_about_the_text():
    from vlm_r1.rewards.registry import ABOUT_THE_TEXT

    assert set(TASK_OF_REWARD) | ABOUT_THE_TEXT == set(REWARDS)
    assert all(function.__doc__ for function in REWARDS.values())
