"""The table of what must be computed how often, counted by hooks over whole steps of the real loop."""

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from support import recipe

from vlm_r1.models.family import Family
from vlm_r1.models.load import load_policy
from vlm_r1.records import SampleImage
from vlm_r1.rl import loop, rollouts
from vlm_r1.rl.step import Trainer
from vlm_r1.rollout import decoding
from vlm_r1.runtime.runlog import read_metrics

G, P, LIMIT, STEPS = 3, 4, 6, 3


class Work:
    """Counts of one phase of one step."""

    def __init__(self) -> None:
        self.calls, self.images, self.tokens, self.projected = 0, 0, 0, 0


@contextmanager
def counting(monkeypatch):
    """Per step: what the rollout and the update ran through tower, language model and output head."""
    steps: list[dict[str, Work]] = []
    phase = ["rollout"]
    everything = Counter()

    def watch(loaded):
        inner = loaded.policy.model.model

        def tower(module, args, kwargs):
            work = steps[-1][phase[0]]
            work.calls += 1
            work.images += len(kwargs["grid_thw"])

        def language(module, args):  # the norm behind all layers, which decoding calls too
            steps[-1][phase[0]].tokens += args[0].shape[:-1].numel()

        def head(module, args):
            steps[-1][phase[0]].projected += args[0].shape[:-1].numel()

        inner.visual.register_forward_pre_hook(tower, with_kwargs=True)
        inner.language_model.norm.register_forward_pre_hook(language)
        loaded.policy.model.lm_head.register_forward_pre_hook(head)
        return loaded

    def load(*args, **kwargs):
        everything["loads"] += 1
        return watch(load_policy(*args, **kwargs))

    deal, update = rollouts.deal, Trainer.step

    def start(*args):
        steps.append({"rollout": Work(), "update": Work()})
        phase[0] = "rollout"
        return deal(*args)

    def go_on(*args):
        phase[0] = "update"
        return update(*args)

    monkeypatch.setattr("vlm_r1.distributed.loading.load_policy", load)
    monkeypatch.setattr(rollouts, "deal", start)
    monkeypatch.setattr(Trainer, "step", go_on)
    monkeypatch.setattr(decoding, "DROP_SHARE", 0.0)
    yield steps, everything


@pytest.fixture
def reward(tmp_path):
    """A reward that differs between answers, and one that never does."""
    file = tmp_path / "reward.py"
    file.write_text(
        "import zlib\n"
        "def varied(sample, answer):\n    return zlib.crc32(answer.raw.encode()) % 1000 / 1000\n"
        "def some(sample, answer):\n    return varied(sample, answer) if int(sample.id.split('-')[1]) % 2 else 0.5\n"
        "def constant(sample, answer):\n    return 0.5\n"
    )
    return file


def trained(monkeypatch, model_folder, tmp_path, parts, rollout=None, **rl):
    with counting(monkeypatch) as (steps, everything):
        run = recipe(
            model_folder,
            tmp_path / "run",
            rl={"group_size": G, "prompts_per_step": P, **rl},
            rollout={"max_new_tokens": LIMIT, **(rollout or {})},
            rewards={"parts": parts},
            run={"steps": STEPS, "save_every": STEPS},
        )
        loop.train(run)
    return steps, read_metrics(tmp_path / "run"), everything


def test_a_step_runs_images_prompts_and_answers_once(monkeypatch, model_folder, tmp_path, reward):
    parts = {f"{reward}:varied": 1.0}
    steps, metrics, everything = trained(monkeypatch, model_folder, tmp_path, parts)
    assert len(steps) == STEPS
    for work, line in zip(steps, metrics, strict=True):
        prompt, answer = line["tokens/prompt"], line["tokens/answer"]
        assert line["frac_reward_zero_std"] == 0
        rollout, update = work["rollout"], work["update"]
        # The last token of an answer is written and never read; the first comes from the prompt's last state.
        assert (rollout.calls, rollout.images) == (1, P)
        assert rollout.tokens == prompt + answer - P * G
        assert rollout.projected == P + answer - P * G
        assert (update.calls, update.images) == (1, P)
        assert update.tokens == prompt + answer - P * G
        assert update.tokens == line["tokens/update_prompt"] + line["tokens/update_answer"]
        assert update.projected == answer  # no pass for old log-probs, none over prompt positions
    assert everything["loads"] == 1  # no reference model


@pytest.mark.parametrize(("sequences", "pieces", "prompts"), [(2 * G, 2, 1), (G, P, 1), (2, 2 * P, 2), (1, G * P, G)])
def test_a_rollout_in_pieces_runs_a_prompt_again_only_where_its_group_is_split(
    monkeypatch, model_folder, tmp_path, reward, sequences, pieces, prompts
):
    parts, limits = {f"{reward}:varied": 1.0}, {"max_sequences": sequences}
    steps, metrics, _ = trained(monkeypatch, model_folder, tmp_path, parts, rollout=limits)
    for work, line in zip(steps, metrics, strict=True):
        assert (work["rollout"].calls, work["rollout"].images) == (pieces, prompts * P)
        assert work["rollout"].tokens == prompts * line["tokens/prompt"] + line["tokens/answer"] - P * G
        assert work["update"].tokens == line["tokens/prompt"] + line["tokens/answer"] - P * G


def test_groups_that_teach_nothing_are_not_run_again(monkeypatch, model_folder, tmp_path, reward):
    steps, metrics, _ = trained(monkeypatch, model_folder, tmp_path, {f"{reward}:some": 1.0})
    shares = {line["frac_reward_zero_std"] for line in metrics}
    assert shares & {0.25, 0.5, 0.75}
    for work, line in zip(steps, metrics, strict=True):
        kept = round(P * (1 - line["frac_reward_zero_std"]))
        assert work["rollout"].images == P and work["update"].images == kept
        assert work["update"].tokens == line["tokens/update_prompt"] + line["tokens/update_answer"]
        assert kept == P or line["tokens/update_prompt"] < line["tokens/prompt"]


def test_a_step_without_any_signal_runs_nothing(monkeypatch, model_folder, tmp_path, reward):
    steps, metrics, _ = trained(monkeypatch, model_folder, tmp_path, {f"{reward}:constant": 1.0})
    for work, line in zip(steps, metrics, strict=True):
        assert (work["update"].calls, work["update"].tokens, work["update"].projected) == (0, 0, 0)
        assert line["frac_reward_zero_std"] == 1 and line["grad_norm"] == 0


def test_a_second_iteration_costs_one_more_pass_and_no_old_logprobs(monkeypatch, model_folder, tmp_path, reward):
    parts = {f"{reward}:varied": 1.0}
    steps, metrics, _ = trained(monkeypatch, model_folder, tmp_path, parts, iterations=2)
    for work, line in zip(steps, metrics, strict=True):
        prompt, answer = line["tokens/prompt"], line["tokens/answer"]
        assert work["update"].tokens == 2 * (prompt + answer - P * G)
        assert (work["update"].calls, work["update"].projected) == (2, 2 * answer)


def test_a_reference_costs_one_pass_and_only_with_beta(monkeypatch, model_folder, tmp_path, reward):
    parts = {f"{reward}:varied": 1.0}
    steps, metrics, everything = trained(monkeypatch, model_folder, tmp_path, parts, beta=0.1)
    assert everything["loads"] == 2
    for work, line in zip(steps, metrics, strict=True):
        prompt, answer = line["tokens/prompt"], line["tokens/answer"]
        assert work["update"].tokens == 2 * (prompt + answer - P * G)
        assert work["update"].projected == 2 * answer and "kl" in line
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-9) and metrics[-1]["kl"] > 0


def test_a_budget_smaller_than_a_group_repeats_its_prompt_alone(monkeypatch, model_folder, tmp_path, reward):
    parts = {f"{reward}:varied": 1.0}
    steps, metrics, _ = trained(monkeypatch, model_folder, tmp_path, parts, token_budget=1)
    for work, line in zip(steps, metrics, strict=True):
        assert work["rollout"].tokens == line["tokens/prompt"] + line["tokens/answer"] - P * G
        assert work["update"].tokens == G * line["tokens/prompt"] + line["tokens/answer"] - P * G


def test_a_image_is_decoded_and_resized_once(monkeypatch, model_folder, tmp_path, reward):
    opened, processed = Counter(), Counter()
    open_image, process = SampleImage.open, Family.process
    monkeypatch.setattr(SampleImage, "open", lambda self: opened.update([self.path]) or open_image(self))
    monkeypatch.setattr(Family, "process", lambda self, p: processed.update([p[0].path]) or process(self, p))
    from support import noise_image

    for number in range(5):
        noise_image(48, 32, number).image.save(tmp_path / f"{number}.png")
    rows = [f'{{"image": "{n % 5}.png", "problem": "the red circle", "solution": [1, 2, 9, 9]}}' for n in range(10)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    data = {"train": [{"path": str(tmp_path / "data.jsonl")}]}
    run = {"steps": 5, "save_every": 5}
    options = {"rewards": {"parts": {f"{reward}:varied": 1.0}}, "run": run, "data": data}
    loop.train(recipe(model_folder, tmp_path / "run", **options))
    assert sum(processed.values()) == 10
    assert max(opened.values()) <= 2  # once to check the file's boxes against its size, once to show it


def test_training_changes_the_weights_only_where_there_is_a_signal(monkeypatch, model_folder, tmp_path, reward):
    from safetensors.torch import load_file

    before = load_file(model_folder / "model.safetensors")
    trained(monkeypatch, model_folder, tmp_path, {f"{reward}:constant": 1.0})
    after = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
