"""The command `vlm-r1 lab`: what it lists, shows and writes without running anything."""

import pytest

from vlm_r1.cli import main


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["lab", *arguments])
    return stopped.value.code or 0


def test_studies_are_listed_with_their_questions(place, capsys):
    assert call("--studies", ".", "--list") == 0
    assert capsys.readouterr().out == "mini: which is better\n"


def test_the_state_of_every_run_is_shown(done, capsys):
    assert call("--studies", ".", "--runs", "runs", "--status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mini: 14 of 14 runs are done" and "  mini/rl/seed-1: done" in lines
    assert call("--studies", ".", "--runs", "elsewhere", "--status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mini: 0 of 14 runs are done" and "  mini/tune-lr/0.01/seed-12: not started" in lines
    assert "  mini/rl/seed-1: waits for the search of its settings" in lines


def test_tables_alone_are_written_and_compared(done, capsys):
    common = ("mini", "--studies", ".", "--runs", "runs", "--table-only")
    assert call(*common, "--out", "again", "--check", "out") == 0
    assert "mini: RL is better: shown" in capsys.readouterr().out
    assert (done / "again" / "mini.md").is_file()
    assert call(*common, "--out", "again", "--check", "nowhere") == 2
    assert "nowhere/mini.json: is missing, so there is nothing to compare with" in capsys.readouterr().err


def test_what_is_wrong_is_one_message(place, capsys):
    assert call("maxi", "--studies", ".") == 2
    assert 'no study "maxi" in .: ' in capsys.readouterr().err
    assert call("--studies", ".", "--runs", "runs", "--out", "out", "--table-only") == 2
    assert "out/mini.json: is missing, and no run of this study is done" in capsys.readouterr().err
