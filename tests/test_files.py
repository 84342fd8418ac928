"""Files and folders are written whole or not at all."""

import os
import socket
import subprocess
import sys

import pytest

from vlm_r1.files import replacing

HERE = socket.gethostname()


def test_a_file_and_a_folder_take_the_place_of_the_old_ones(tmp_path):
    file, folder = tmp_path / "a" / "x.json", tmp_path / "final"
    for text in ("old", "new"):
        with replacing(file) as aside:
            aside.write_text(text)
            assert not file.exists() or file.read_text() == "old"
        with replacing(folder) as aside:
            (aside / "deep").mkdir(parents=True)
            (aside / "deep" / f"{text}.txt").write_text(text)
    assert file.read_text() == "new"
    assert [p.name for p in folder.rglob("*.txt")] == ["new.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "final"]


def test_an_error_changes_nothing_and_leaves_nothing(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with pytest.raises(KeyError), replacing(file) as aside:
        aside.write_text("half")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"] and file.read_text() == "old"


def test_what_a_killed_process_left_is_removed_and_that_of_others_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".x.json.{HERE}-{gone.pid}.tmp"
    left.mkdir()
    kept = [tmp_path / f".x.json.{HERE}-{os.getppid()}.tmp", tmp_path / f".x.json.elsewhere-{gone.pid}.tmp"]
    for path in kept:
        path.write_text("half")
    with replacing(tmp_path / "x.json") as aside:
        aside.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "x.json"])
