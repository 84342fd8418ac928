"""Recipes for several processes: a tiny model, rewards that differ between answers, steps of every kind."""

import json
from pathlib import Path

import pytest
from PIL import Image
from support import recipe, save_tiny

REWARDS = (
    "import zlib\n"
    "def varied(sample, answer):\n    return zlib.crc32(answer.raw.encode()) % 1000 / 1000\n"
    "def some(sample, answer):\n    return varied(sample, answer) if zlib.crc32(sample.id.encode()) % 2 else 0.5\n"
)
STEPS = 5
EVAL = {"data": {"eval": {"held_out": {"scenes": {"split": "in_domain", "n": 5}}}}, "eval": {"max_new_tokens": 4}}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def rewards(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    return file


def make(folder: Path, rewards: Path, method: str = "grpo", reward: str = "varied", /, **sections):
    """A recipe of five steps of three prompts with three answers; AdamW's steps are small beside its rounding noise."""
    base = {
        "rewards": {"parts": {f"{rewards}:{reward}": 1.0}},
        "rl": {"group_size": 3, "prompts_per_step": 3, "token_budget": 250},
        "sft": {"images_per_step": 3, "token_budget": 250},
        "optim": {"lr": 1e-4},
        "run": {"steps": STEPS, "save_every": STEPS, "log_rollouts_every": 1, "threads": 1},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return recipe(folder, Path("runs/none"), method, **base)


def text_and_images(folder: Path) -> Path:
    """A file of questions of which every other one is about no image."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (48, 40), "red").save(folder / "a.png")
    rows = []
    for i in range(12):
        image = {"image": "a.png"} if i % 4 == 0 else {}
        rows.append({**image, "problem": f"How many of {i}?", "solution": str(i), "task": "count"})
    file = folder / "mixed.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
