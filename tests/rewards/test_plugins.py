import contextlib
import importlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

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


HOSTILE = """
import asyncio, os, sys, time

def exits(sample, answer):
    sys.exit(0)

def exits_all(completions):
    sys.exit()

async def exits_async(completions):
    sys.exit(0)

def cancelled(sample, answer):
    raise asyncio.CancelledError

def recurses(sample, answer):
    return recurses(sample, answer)

def huge(sample, answer):
    return 10**400

def not_a_number(sample, answer):
    return float("nan")

async def hangs(completions):
    await asyncio.sleep(30)

async def hangs_and_blocks(completions):
    time.sleep(30)

async def hangs_and_swallows(completions):
    while True:
        try:
            await asyncio.sleep(30)
        except:
            pass

def hangs_in_a_loop(sample, answer):
    while True:
        try:
            time.sleep(30)
        except:
            pass

def late(sample, answer):
    try:
        time.sleep(30)
    except:
        return 1.0

def forks(sample, answer):
    return 0.75 if os.fork() else 0.25

def forks_and_raises(sample, answer):
    if os.fork():
        return 0.75
    raise ValueError

def forks_and_exits(sample, answer):
    if os.fork():
        return 0.75
    sys.exit(0)

async def forks_async(completions):
    return [0.75 if os.fork() else 0.25] * len(completions)
"""


@pytest.fixture
def hostile(tmp_path):
    file = tmp_path / "hostile.py"
    file.write_text(HOSTILE)
    return file


def fails(call, in_thread):
    """A call's result, in the main thread as in training, or in another as in the playground."""
    if not in_thread:
        return call()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize(
    "function", ["exits", "exits_all", "exits_async", "cancelled", "recurses", "huge", "not_a_number"]
)
def test_a_reward_cannot_end_the_run_in_silence(case, hostile, function, in_thread):
    name, pair = f"{hostile}:{function}", case("rec", "[0,0,10,5]", boxes=[TRUE])
    with pytest.raises(RewardError, match=rf'{function}" raised .*\(sample s1\)'):
        fails(lambda: make(name).score(*pair), in_thread)
    zero = build_rubric(RewardConfig(parts={name: 1.0}, on_error="zero"))
    assert fails(lambda: zero.score(*pair).total, in_thread) == 0
    assert zero.counts == {f"errors/{name}": 1}


@pytest.mark.parametrize(
    ("function", "in_thread"),
    [
        *((name, False) for name in ("hangs", "hangs_and_blocks", "hangs_and_swallows", "hangs_in_a_loop", "late")),
        *((name, True) for name in ("hangs", "hangs_and_blocks", "hangs_and_swallows")),
    ],
)
def test_the_time_limit_holds_whatever_a_reward_does(case, hostile, function, in_thread):
    name = f"{hostile}:{function}"
    made, start = build_rubric(RewardConfig(parts={name: 1.0}, timeout_s=0.2)), time.monotonic()
    assert fails(lambda: made.score(*case("rec", "[0,0,10,5]", boxes=[TRUE])).total, in_thread) == 0
    assert time.monotonic() - start < 3
    assert made.counts == {f"timeouts/{name}": 1}


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("function", ["forks", "forks_and_raises", "forks_and_exits", "forks_async"])
def test_the_child_of_a_reward_that_forks_does_not_train(case, hostile, tmp_path, function, in_thread):
    pair = case("rec", "[0,0,10,5]", boxes=[TRUE])
    process, total = os.getpid(), fails(lambda: make(f"{hostile}:{function}").score(*pair).total, in_thread)
    if os.getpid() != process:
        (tmp_path / "child").touch()
        os._exit(0)
    assert total == 0.75
    with contextlib.suppress(ChildProcessError):
        os.wait()
    assert not (tmp_path / "child").exists()


def test_a_reward_file_that_exits_is_named(tmp_path):
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)")
    with pytest.raises(ConfigError, match="raised SystemExit"):
        make(f"{tmp_path}/ends.py:f")


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
