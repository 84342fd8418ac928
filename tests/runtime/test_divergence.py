"""Numbers that are not finite: updates are skipped and counted; a run whose model is lost says where and what to do."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import made_up, names, recipe, sample, tiny

from vlm_r1.errors import DivergenceError, ModelError
from vlm_r1.eval.run import evaluate_model
from vlm_r1.records import SamplingParams
from vlm_r1.rl import loop
from vlm_r1.rl import step as rl_step
from vlm_r1.rl.batch import make_batch
from vlm_r1.rollout.sampling import choose
from vlm_r1.runtime.runlog import read_metrics
from vlm_r1.sft import train as sft

TRAIN = {"grpo": loop.train, "sft": sft.train}
REWARD = "def varied(sample, answer):\n    return float(sum(map(ord, answer.raw)) % 5)\n"


@pytest.fixture
def make(model_folder, tmp_path):
    """Recipes whose answers get different rewards, so that there is something to learn."""
    (tmp_path / "rewards.py").write_text(REWARD)
    parts = {f"{tmp_path}/rewards.py:varied": 1.0}

    def made(method="grpo", **sections):
        run = {"steps": 6, "save_every": 1, "keep": 9} | sections.pop("run", {})
        return recipe(model_folder, tmp_path / "run", method, run=run, rewards={"parts": parts}, **sections)

    return made


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_with_a_weight_that_is_not_finite_is_refused_with_its_name(model_folder, tmp_path, value):
    broken = shutil.copytree(model_folder, tmp_path / "broken")
    file = broken / "model.safetensors"
    weights = load_file(file)
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    weights[name][3, 2] = value
    save_file(weights, file, metadata={"format": "pt"})
    told = rf"broken: its weights are not finite \(first in {re.escape(name)}\)"
    with pytest.raises(ModelError, match=told):
        loop.train(recipe(broken, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    splits = {"held_out": {"scenes": {"split": "in_domain", "n": 2}}}
    with pytest.raises(ModelError, match=told):
        evaluate_model(recipe(broken, tmp_path / "run", data={"eval": splits}))


@pytest.mark.parametrize(
    ("method", "lr", "what"),
    [
        ("grpo", 1e30, r"step 5: the log-probs of answers are not finite \(first in \S+\)"),
        ("sft", 1e30, r"step 5: the loss is not finite \(first in model\.visual\S+\)"),
        ("sft", 3e38, r"step 4: weights are not finite \(first in model\.\S+\)"),
    ],
)
def test_a_diverged_update_names_the_step_the_layer_and_the_last_good_checkpoint(
    make, tmp_path, monkeypatch, method, lr, what
):
    for module in (rl_step, sft):
        monkeypatch.setattr(module, "learning_rate", lambda config, step, steps: lr if step == 3 else 1e-3)
    good = tmp_path / "run" / "checkpoint-3"
    told = rf"{what}. The last good checkpoint is {good}: .* vlm-r1 export {good} --out .* Lower optim\.lr"
    with pytest.raises(DivergenceError, match=told):
        TRAIN[method](make(method))
    steps = [int(name.rpartition("-")[2]) for name in names(tmp_path / "run") if name.startswith("checkpoint")]
    assert steps == [1, 2, 3] + [4] * (lr < 3e38)


def fails_at(monkeypatch, *steps, only=()):
    """The loss of these steps (from 0) is NaN."""
    at, loss, before = [0], rl_step.Trainer.loss, rl_step.Trainer.step

    def step(self, batch, number):
        at[0] = number
        return before(self, batch, number)

    monkeypatch.setattr(rl_step.Trainer, "step", step)
    monkeypatch.setattr(
        rl_step.Trainer, "loss", lambda self, x, sums: loss(self, x, sums) * (torch.nan if at[0] in steps else 1)
    )


def test_a_step_without_a_finite_loss_is_skipped_and_counted(make, tmp_path, monkeypatch, capsys):
    fails_at(monkeypatch, 1, 2, 4)
    loop.train(make(optim={"lr": 1e-2, "max_skipped": 3}))
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped_updates"] for row in rows] == [0, 1, 1, 0, 1, 0]
    assert [row["grad_norm"] is None for row in rows] == [False, True, True, False, True, False]
    assert all(value.isfinite().all() for value in load_file(tmp_path / "run" / "final" / "model.safetensors").values())
    assert "step 3: the gradient is not finite, so the update was skipped (2 in a row; the run stops at 3)" in (
        capsys.readouterr().err
    )
    assert [name for name in names(tmp_path / "run") if name.startswith("checkpoint")] == [
        f"checkpoint-{n}" for n in (1, 4, 6)
    ], "a step that was skipped is no good place to continue from, but for the last"


def test_too_many_skipped_steps_in_a_row_end_the_run(make, tmp_path, monkeypatch):
    fails_at(monkeypatch, 2, 3, 4)
    told = r"step 4: the gradient is not finite, 2 times in a row since step 3 \(the weights are.*checkpoint-2: "
    with pytest.raises(DivergenceError, match=told):
        loop.train(make(optim={"max_skipped": 2}))


def test_several_iterations_on_a_batch_are_skipped_one_by_one(make, tmp_path, monkeypatch):
    fails_at(monkeypatch, 1)
    loop.train(make(rl={"iterations": 2}, run={"steps": 3}))
    assert [row["skipped_updates"] for row in read_metrics(tmp_path / "run")] == [0, 2, 0]


@pytest.mark.parametrize("seed", [None, (0, 0)])
def test_log_probs_that_are_not_numbers_choose_a_token_of_the_vocabulary(seed):
    logprobs = torch.full((2, 7), torch.nan)
    u = None if seed is None else torch.tensor([0.1, 0.9], dtype=torch.double)
    chosen = choose(logprobs, SamplingParams(seed=seed, max_new_tokens=1), u)
    assert ((chosen >= 0) & (chosen < 7)).all()


def test_groups_without_finite_log_probs_are_left_out_and_told():
    loaded = tiny()
    prompt = loaded.family.encode(sample())
    groups = [made_up(loaded, prompt, [2, 3], seed) for seed in (0, 1)]
    rollout = groups[1].rollouts[0]
    object.__setattr__(rollout, "logprobs", (float("nan"), *rollout.logprobs[1:]))
    batch = make_batch(groups, torch.ones(2, 2), torch.ones(2, 2), keep_all=True)
    assert not batch.finite and len(batch.prefix_groups) == 1 and len(batch.advantages_B) == 2
    assert make_batch(groups[:1], torch.ones(1, 2), torch.ones(1, 2), keep_all=True).finite
