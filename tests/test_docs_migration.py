"""docs/migration.md names settings and rewards that exist, and the names of others that an error translates."""

import re
from pathlib import Path

import pytest

from vlm_r1.config_keys import OTHER_NAMES, all_keys

PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text(encoding="utf-8")
SECTIONS = {"model", "data", "train", "lora", "prompt", "rollout", "rewards", "rl", "sft", "optim", "eval", "run"}


def rows():
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]


def test_every_setting_of_ours_exists():
    ours = {name for row in rows() for name in re.findall(r"`([a-z_]+\.[a-z_0-9]+)`", row[1])}
    assert len(ours) > 30 and {name for name in ours if name.split(".")[0] in SECTIONS} - all_keys().keys() == set()


def test_every_part_of_train_exists():
    parts = {part for group in re.findall(r"`train: \{([^}]*)\}`", PAGE) for part in re.findall(r"(\w+):", group)}
    assert parts == {"vision", "connector"}
    assert {f"train.{part}" for part in parts} <= all_keys().keys()


@pytest.mark.parametrize("other", sorted(OTHER_NAMES))
def test_what_an_error_translates_is_in_the_table_of_trl(other):
    found = [row for row in rows() if f"`{other}`" in row[0]]
    assert not found or any(OTHER_NAMES[other] in row[1] for row in found)
