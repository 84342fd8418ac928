"""The page on tools: its tool and its environment are the files of recipes/, short, and work as the page says."""

import pytest
from pages import ROOT, blocks, first_column
from support import mixed_prompts, tiny

from vlm_r1.config import EnvConfig
from vlm_r1.envs.call import FAILURES
from vlm_r1.envs.host import Host
from vlm_r1.envs.tools import TOOLS
from vlm_r1.records import Rollout

FOLDER = ROOT / "recipes" / "scenes"
LOADED = tiny()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def told(tool: str, *texts: str):
    """What an answer to a question about a box (8, 8, 24, 24) of 48 x 32 pixels is told, and its score."""
    host = Host(EnvConfig(tools=[tool], max_calls=5), LOADED.family)
    [talk] = host.talks(mixed_prompts(LOADED)[0], 1)
    for text in texts:
        written = Rollout(token_ids=(1, 2), logprobs=(-1.0, -1.0), text=text, finish="stop")
        turn = host.ask(talk, written).result()
        if turn is not None:
            talk.add(turn, written.token_ids)
    return [turn.call for turn in talk.turns], host.scores([talk], [talk.finish(written, [])])[0].score


def test_the_page_holds_the_files_and_they_are_short():
    tool, game = blocks("tools.md", "python")
    assert tool.strip() == (FOLDER / "my_tool.py").read_text().strip() and len(tool.splitlines()) < 25
    assert game.strip() == (FOLDER / "my_game.py").read_text().strip() and len(game.splitlines()) < 60


def test_the_tool_shows_a_brighter_part():
    [call], score = told(
        "recipes/scenes/my_tool.py:brighten",
        '<tool>{"name": "brighten", "box": [0, 0, 500, 500], "factor": 1.5}</tool>',
    )
    assert (call.failure, call.reply, score) == ("", "brightness x 1.5", None)
    assert call.images[0].open().size == (24, 16)


def test_the_environment_leads_to_the_box_and_scores_it():
    guess = '<tool>{{"name": "guess", "box": [{}]}}</tool>'
    calls, score = told(
        "recipes/scenes/my_game.py:HotOrCold",
        guess.format("0, 0, 100, 100"),
        guess.format("170, 250, 500, 750"),
        '<tool>{"name": "look"}</tool>',
        "it is there",
    )
    assert [call.reply for call in calls[:2]] == ["cold: further down and right", "hot: answer now"]
    assert calls[2].failure == "unknown_tool"
    assert score == pytest.approx(1.0 - 2 * 0.05, abs=0.05)


def test_tools_and_failures_of_the_page_are_those_there_are():
    assert first_column("tools.md", "tool", "arguments") == list(TOOLS)
    assert first_column("tools.md", "failure of a call") == list(FAILURES)
