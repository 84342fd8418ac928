import importlib

import pytest

from vlm_r1.config import RewardConfig
from vlm_r1.errors import ConfigError, RewardError
from vlm_r1.rewards.rubric import build_rubric

TRUE = (0, 0, 10, 10)
PLUGINS = """
from vlm_r1.records import Score

def ours(sample, answer, bonus=0.0):
    return Score(total=len(answer.value) + bonus, parts={"n": 1.0})

def plain(sample, answer):
    return None if sample.id == "skip" else 0.25

def trl(completions, solution, city, scale=1.0, **kwargs):
    assert kwargs["prompts"] == ["q"] * len(completions)
    return [None if c is None else scale * len(text) * len(c) for text, c in zip(completions, city)]

def trl_strict(completions):
    return [float("[0" in text) for text in completions]

def trl_chat(completions, **kwargs):
    return [float(c[0]["role"] == "assistant") * len(c[0]["content"]) for c in completions]

async def trl_async(completions, **kwargs):
    return [0.5] * len(completions)

def trl_short(completions, **kwargs):
    return []

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(str(ground_truth) in solution_str), "acc": 1.0}

def text(sample, answer):
    return "0.5"

number = 3
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(PLUGINS)
    return file


def make(name, **options):
    return build_rubric(RewardConfig(parts={name: 1.0}, options={name: options} if options else {}))


def test_our_signature_with_options(case, path):
    pair = case("rec", "[0,0,10,5]", boxes=[TRUE])
    assert make(f"{path}:ours", bonus=0.5).score(*pair).total == 1.5
    assert make(f"{path}:plain").score(*pair).total == 0.25
    with pytest.raises(ConfigError, match='takes no option "bonsu"'):
        make(f"{path}:ours", bonsu=1)


def test_trl_s_signature_gets_columns_of_the_whole_batch(case, path):
    pairs = [
        case("text", "ab", wrap=False, text="x", columns={"city": "Rome"}),
        case("text", "abc", wrap=False, text="x"),
        case("text", "a", wrap=False, text="x", columns={"city": "Ulm"}),
    ]
    made = make(f"{path}:trl", scale=2.0)
    samples, answers = zip(*pairs, strict=True)
    assert [score.total for score in made.score_all(samples, answers)] == [16.0, None, 6.0]
    assert made.counts == {f"not_scorable/{path}:trl": 1}


def test_trl_s_signature_without_columns_with_chats_and_async(case, path):
    pair = case("rec", "[0,0,10,5]", boxes=[TRUE])
    assert make(f"{path}:trl_strict").score(*pair).total == 1
    assert make(f"{path}:trl_chat", conversational=True).score(*pair).total == len(pair[1].raw)
    assert make(f"{path}:trl_async").score(*pair).total == 0.5


def test_verl_s_signature(case, path):
    name = f"{path}:compute_score"
    assert make(name).score(*case("number", "42", text="42")).total == 1
    assert make(name).score(*case("number", "41", text="42")).total == 0
    columns = {"reward_model": {"ground_truth": "41"}}
    assert make(name).score(*case("number", "41", text="42", columns=columns)).total == 1


@pytest.mark.parametrize("function", ["trl_short", "text"])
def test_wrong_returns_name_the_reward_and_the_sample(case, path, function):
    with pytest.raises(RewardError, match=rf'{function}" raised .*\(sample s1\)'):
        make(f"{path}:{function}").score(*case("rec", "[0,0,10,5]", boxes=[TRUE]))


def test_mistakes_in_the_name_are_named(path, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*missing\.py"):
        make(f"{tmp_path}/missing.py:f")
    with pytest.raises(ConfigError, match='has no function "absent"'):
        make(f"{path}:absent")
    with pytest.raises(ConfigError, match="3 is not a function"):
        make(f"{path}:number")
    bad = tmp_path / "bad.py"
    bad.write_text("import nowhere_at_all")
    with pytest.raises(ConfigError, match="raised ModuleNotFoundError"):
        make(f"{bad}:f")


def test_an_installed_package_offers_rewards_by_entry_point(case, tmp_path, monkeypatch):
    (tmp_path / "reward_pack.py").write_text("def half(sample, answer):\n    return 0.5\n")
    info = tmp_path / "reward_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reward-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vlm_r1.rewards]\nhalf = reward_pack:half\nlost = reward_pack:lost\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert make("half").score(*case("rec", "[0,0,1,1]", boxes=[TRUE])).total == 0.5
    with pytest.raises(ConfigError, match="entry point reward_pack:lost cannot be loaded"):
        make("lost")
