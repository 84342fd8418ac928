"""One run on 1, 2 and 4 processes: the same answers, losses, gradient norms, weights, metrics and evaluations."""

import pytest
from distributed.conftest import EVAL, make, text_and_images
from distributed.running import assert_same_run, run_all

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(model_folder, rewards, tmp_path_factory):
    """Number of processes -> name -> run folder."""
    from support import talkative
    from zoo import zoo

    folder = tmp_path_factory.mktemp("runs")
    zoo()["llava"].build(folder / "llava")
    talking, talker = talkative(model_folder, folder)
    mixed = {"train": [{"path": str(text_and_images(folder / "data"))}]}
    recipes = {
        "grpo": make(model_folder, rewards, rl={"beta": 0.02}, **EVAL),
        "skipped": make(model_folder, rewards, "grpo", "some"),
        "dapo": make(model_folder, rewards, "grpo", "some", rl={"algorithm": "dapo"}),
        "gspo": make(model_folder, rewards, rl={"algorithm": "gspo", "iterations": 2}),
        "one-prompt": make(model_folder, rewards, rl={"prompts_per_step": 1, "group_size": 4, "token_budget": 80}),
        "lora": make(model_folder, rewards, train={"language": "lora"}, rl={"beta": 0.02}),
        "dora": make(model_folder, rewards, train={"language": "lora"}, lora={"variant": "dora"}),
        "frozen": make(model_folder, rewards, train={"vision": "frozen", "connector": "frozen"}, rl={"beta": 0.02}),
        "frozen-tower": make(model_folder, rewards, data=mixed, train={"vision": "frozen"}, rl={"beta": 0.02}),
        "last-blocks": make(model_folder, rewards, train={"vision": "last_1", "language": "last_1"}),
        "text": make(model_folder, rewards, data=mixed),
        "by-layer": make(model_folder, rewards, rl={"beta": 0.02}, rollout={"gather": "by_layer"}, **EVAL),
        "by-layer-text": make(
            model_folder, rewards, data=mixed, rollout={"gather": "by_layer", "max_sequences": 2, "max_new_tokens": 9}
        ),
        "by-layer-frozen": make(
            model_folder,
            rewards,
            train={"vision": "frozen", "connector": "frozen"},
            rollout={"gather": "by_layer", "max_new_tokens": 9},
        ),
        "by-layer-frozen-tower": make(
            model_folder,
            rewards,
            data=mixed,
            train={"vision": "frozen"},
            rollout={"gather": "by_layer", "max_sequences": 2, "max_new_tokens": 9},
        ),
        "llava": make(folder / "llava", rewards),
        "calls": make(talking, rewards, env={"tools": [f"{talker}:Talker"]}),
        "scratch": make(model_folder, rewards, model={"init": "scratch", "scratch": _scratch()}),
        "sft": make(model_folder, rewards, "sft", **EVAL),
        "sft-text": make(model_folder, rewards, "sft", data=mixed),
        "sft-lora": make(model_folder, rewards, "sft", train={"language": "lora"}),
        "sft-frozen": make(model_folder, rewards, "sft", train={"vision": "frozen", "connector": "frozen"}),
    }
    return {n: run_all(recipes, n, folder / str(n)) for n in (1, 2, 4)}


def _scratch():
    from support import scratch

    return scratch("qwen2_5_vl")


NAMES = ("grpo", "skipped", "dapo", "gspo", "one-prompt", "lora", "dora", "frozen", "frozen-tower", "last-blocks")
NAMES += (
    "by-layer",
    "by-layer-text",
    "by-layer-frozen",
    "by-layer-frozen-tower",
    "text",
    "llava",
    "calls",
    "scratch",
    "sft",
    "sft-text",
    "sft-lora",
    "sft-frozen",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("processes", [2, 4])
def test_the_same_run(runs, name, processes):
    assert_same_run(runs[1][name], runs[processes][name])
