"""The update against a float64 loop over plain forwards: every algorithm, several budgets, iterations, and KL."""

import math
from dataclasses import replace

import pytest
import torch
from support import (
    assert_same_gradients,
    gradients,
    mixed_groups,
    mixed_prompts,
    plain_logprobs,
    plain_model,
    reference_of,
    tiny,
)

from vlm_r1.records import SamplingParams
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.batch import make_batch
from vlm_r1.rl.step import Trainer
from vlm_r1.rollout.engine import awake

TEMPERATURE, LIMIT, LOW = 0.9, 12, 0.2
REWARDS = torch.tensor([[0.1, 0.9, 0.4], [0.5, 0.5, 0.5], [1.0, 0.0, 0.0], [0.3, 0.2, 0.8]])
HIGH = {"dapo": 0.28, "gspo": 4e-4}
NUDGE = 0.02


class Recorder:
    """Stands in for the optimiser: keeps every step's gradients, then nudges the weights the same way each time."""

    def __init__(self, model) -> None:
        self.model, self.param_groups, self.steps = model, [{"lr": 0.0}], []

    def step(self) -> None:
        self.steps.append(gradients(self.model))
        nudge(self.model)

    def zero_grad(self) -> None:
        self.model.zero_grad()


def nudge(model) -> None:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += NUDGE * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def prepared(algorithm: str, groups, keep_all: bool = False):
    """The step's batch, from rewards as written above and the algorithm's own advantage and weights."""
    choices = ALGORITHMS[algorithm]
    lengths = torch.tensor([len(r.token_ids) for g in groups for r in g.rollouts])
    weights = choices.token_weight(lengths, len(lengths), int(lengths.sum()), LIMIT).view(REWARDS.shape)
    return make_batch(groups, choices.advantage(REWARDS), weights, keep_all=keep_all)


def hand_advantages(algorithm: str) -> list[float]:
    found = []
    for row in REWARDS.double().tolist():
        mean = sum(row) / 3
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / 2)
        for r in row:
            found.append({"dr_grpo": r - mean, "rloo": 1.5 * (r - mean)}.get(algorithm, (r - mean) / (std + 1e-4)))
    return found


def hand_loss(algorithm: str, new, old, groups, ref=None, beta: float = 0.0, weights=None):
    """The step's loss in float64, one answer and one token at a time. `new`, `old`, `ref` are flat log-probs.

    `weights` are those of tokens that another engine sampled.
    """
    answers = [r.token_ids for g in groups for r in g.rollouts]
    tokens, high, total, at = sum(map(len, answers)), HIGH.get(algorithm, 0.2), 0.0, 0
    for answer, advantage in zip(answers, hand_advantages(algorithm), strict=True):
        n = len(answer)
        places = range(at, at + n)
        mean_log_ratio = sum(new[i] - old[i] for i in places) / n
        for i in places:
            ratio = (mean_log_ratio if algorithm == "gspo" else new[i] - old[i]).exp()
            held = min(max(float(ratio.detach()), 1 - LOW), 1 + high)
            if algorithm == "cispo":
                gain = held * advantage * new[i]
            else:
                gain = ratio * advantage if float(ratio.detach()) * advantage <= held * advantage else held * advantage
            value = -gain if weights is None else -gain * float(weights[i])
            if ref is not None:
                value = value + beta * ((ref[i] - new[i]).exp() - (ref[i] - new[i]) - 1)
            share = {"dr_grpo": 1 / (12 * LIMIT), "dapo": 1 / tokens, "cispo": 1 / tokens, "rloo": 1 / 12}
            total = total + value * share.get(algorithm, 1 / (12 * n))
        at += n
    return total


def exact(loaded, groups, model):
    return plain_logprobs(model, groups, loaded.policy.suppressed, TEMPERATURE)


def options(algorithm: str, **rl) -> dict:
    rl = {"algorithm": algorithm, "group_size": 3, "clip_low": LOW, **rl}
    rollout = {"temperature": TEMPERATURE, "max_new_tokens": LIMIT}
    return {"rl": rl, "rollout": rollout, "optim": {"max_grad_norm": 1e9}}


def run(session, algorithm: str, groups, reference=None, corrects: str = "off"):
    """One update; returns its metrics and the gradients of each of its optimiser steps."""
    session.optimizer = recorder = Recorder(session.policy)
    batch = prepared(algorithm, groups, keep_all=reference is not None)
    tally = Trainer(session, ALGORITHMS[algorithm], reference, corrects).step(batch, 0)
    return tally.values(), recorder.steps


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_loss_and_gradients_of_two_iterations_equal_a_float64_loop(session, algorithm):
    session = session(**options(algorithm, iterations=2, token_budget=70))
    loaded = session.loaded
    groups = mixed_groups(loaded)
    model = plain_model(loaded, torch.float64)
    metrics, steps = run(session, algorithm, groups)
    assert len(steps) == 2

    first = exact(loaded, groups, model)
    hand_loss(algorithm, first, first.detach(), groups).backward()
    assert_same_gradients(steps[0], gradients(model))
    nudge(model)
    second = exact(loaded, groups, model)
    ratios = (second - first).detach().exp()
    assert ((ratios < 1 - LOW) | (ratios > 1.28)).any() and ((ratios > 1 - LOW) & (ratios < 1.2)).any()
    loss = hand_loss(algorithm, second, first.detach(), groups)
    loss.backward()
    assert_same_gradients(steps[1], gradients(model))
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6)


def test_the_update_does_not_depend_on_the_token_budget(session):
    session = session(**options("grpo", iterations=2))
    groups = mixed_groups(session.loaded)
    start = {n: p.detach().clone() for n, p in session.loaded.policy.named_parameters()}
    results = []
    for budget in (10_000, 1, 40, 90):
        restore(session, start)
        session.recipe = session.recipe.model_copy(
            update={"rl": session.recipe.rl.model_copy(update={"token_budget": budget})}
        )
        results.append(run(session, "grpo", groups))
    for metrics, steps in results[1:]:
        assert metrics == pytest.approx(results[0][0], rel=1e-4, abs=1e-6)
        for ours, theirs in zip(steps, results[0][1], strict=True):
            assert_same_gradients(ours, theirs)


def restore(session, weights) -> None:
    with torch.no_grad():
        for name, parameter in session.loaded.policy.named_parameters():
            parameter.copy_(weights[name])


def test_kl_is_zero_and_without_gradient_at_the_first_step_and_counts_at_the_second(session):
    beta = 0.7
    session = session(**options("grpo", beta=beta, iterations=2))
    loaded = session.loaded
    groups = mixed_groups(loaded)
    model = plain_model(loaded, torch.float64)
    reference, policy = reference_of(session)
    assert not any(p.requires_grad for p in policy.parameters())
    metrics, steps = run(session, "grpo", groups, reference)

    first = exact(loaded, groups, model)
    hand_loss("grpo", first, first.detach(), groups).backward()  # no KL term: its gradient is zero here
    assert_same_gradients(steps[0], gradients(model), relative=2e-4)
    nudge(model)
    second = exact(loaded, groups, model)
    loss = hand_loss("grpo", second, first.detach(), groups, ref=first.detach(), beta=beta)
    loss.backward()
    assert_same_gradients(steps[1], gradients(model))
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    log_ratio = (first - second).detach()
    assert metrics["kl"] == pytest.approx(float((log_ratio.exp() - log_ratio - 1).mean()), rel=1e-3)


def test_kl_keeps_the_groups_whose_advantages_are_zero():
    groups = mixed_groups(tiny())
    lengths = [[len(r.token_ids) for r in g.rollouts] for g in groups]
    for keep_all, kept in ((False, (0, 2, 3)), (True, (0, 1, 2, 3))):
        batch = prepared("grpo", groups, keep_all=keep_all)
        assert [group.token_ids.tolist() for group in batch.prefix_groups] == [
            list(groups[n].prompt.token_ids) for n in kept
        ]
        assert [len(row) for row in batch.sampler_B] == [n for g in kept for n in lengths[g]]
        assert len(batch.advantages_B) == len(batch.weights_B) == 3 * len(kept)


def test_clip_ratios_count_tokens_outside_on_the_side_that_matters(session):
    session = session(**options("grpo", iterations=2))
    loaded = session.loaded
    groups = mixed_groups(loaded)
    model = plain_model(loaded, torch.float64)
    metrics, _ = run(session, "grpo", groups)
    first = exact(loaded, groups, model).detach()
    nudge(model)
    ratios = (exact(loaded, groups, model).detach() - first).exp()
    lengths = [len(r.token_ids) for g in groups for r in g.rollouts]
    advantages = torch.tensor(hand_advantages("grpo")).repeat_interleave(torch.tensor(lengths))
    kept = torch.tensor([n not in (3, 4, 5) for n in range(12)]).repeat_interleave(torch.tensor(lengths))
    low = ((ratios < 0.8) & (advantages < 0) & kept).sum() / kept.sum()
    high = ((ratios > 1.2) & (advantages > 0) & kept).sum() / kept.sum()
    assert metrics["clip_ratio/low_mean"] == pytest.approx(float(low)) and low > 0
    assert metrics["clip_ratio/high_mean"] == pytest.approx(float(high)) and high > 0


def test_gradients_are_clipped_to_the_norm_and_the_norm_is_reported(session):
    session = session(**options("grpo") | {"optim": {"max_grad_norm": 0.01}})
    groups = mixed_groups(session.loaded)
    metrics, steps = run(session, "grpo", groups)
    norm = math.sqrt(sum(float((g**2).sum()) for g in steps[0].values()))
    assert norm == pytest.approx(0.01, rel=1e-3) and metrics["grad_norm"] > 0.02


def test_a_step_without_anything_to_learn_gives_zero_gradients(session):
    session = session(**options("grpo"))
    groups = mixed_groups(session.loaded)[1:2]
    session.optimizer = recorder = Recorder(session.loaded.policy)
    batch = make_batch(groups, torch.zeros(1, 3), torch.ones(1, 3), keep_all=False)
    assert batch.prefix_groups == () and batch.n_prompt_tokens == batch.n_answer_tokens == 0
    metrics = Trainer(session, ALGORITHMS["grpo"], None).step(batch, 0).values()
    assert "entropy" not in metrics  # a mean of nothing
    assert metrics["grad_norm"] == 0 and metrics["loss"] == 0
    assert all(not g.any() for g in recorder.steps[0].values())


@pytest.mark.parametrize("corrects", ["off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_another_samplers_tokens_are_weighted_and_the_mismatch_is_measured(session, corrects):
    session = session(**options("grpo", token_budget=70))
    loaded = session.loaded
    model = plain_model(loaded, torch.float64)
    groups = mixed_groups(loaded)
    trainer = exact(loaded, groups, model)
    noise = torch.randn(len(trainer), generator=torch.Generator().manual_seed(8)).double() * 0.9
    sampler = (trainer.detach() - noise).float()
    groups = sampled_as(groups, sampler.tolist())
    metrics, steps = run(session, "grpo", groups, corrects=corrects)

    lengths = [len(r.token_ids) for g in groups for r in g.rollouts]
    logs = [trainer.detach()[i] - sampler[i].double() for i in range(len(sampler))]
    if corrects.startswith("sequence"):
        parts = torch.stack(logs).split(lengths)
        logs = [part.sum() for part in parts for _ in part]
    weights = [math.exp(float(log)) for log in logs]
    if corrects == "off":
        weights = [1.0] * len(weights)
    weights = [min(w, 3.0) if corrects.endswith("truncate") else w * (w <= 3.0) for w in weights]
    assert corrects == "off" or max(w != v for w, v in zip(weights, map(math.exp, map(float, logs)), strict=True))
    hand_loss("grpo", trainer, trainer.detach(), groups, weights=weights).backward()
    assert_same_gradients(steps[0], gradients(model))

    kept = torch.tensor([n not in (3, 4, 5) for n in range(12)]).repeat_interleave(torch.tensor(lengths))
    gap = (trainer.detach() - sampler.double())[kept]
    name = "sampling/sampling_logp_difference"
    assert metrics[f"{name}/mean"] == pytest.approx(float(gap.abs().mean()), rel=1e-4)
    assert metrics[f"{name}/max"] == pytest.approx(float(gap.abs().max()), rel=1e-4)
    assert metrics["sampling/kl"] == pytest.approx(float((gap.exp() - gap - 1).mean()), rel=1e-4)
    used = torch.tensor(weights)[kept]
    name = "sampling/importance_sampling_ratio"
    assert metrics[f"{name}/mean"] == pytest.approx(float(used.mean()), rel=1e-4)
    assert (metrics[f"{name}/min"], metrics[f"{name}/max"]) == pytest.approx(
        (float(used.min()), float(used.max())), rel=1e-4
    )


def sampled_as(groups, logprobs: list[float]):
    """The same answers with these log-probs of their sampler."""
    left = iter(logprobs)
    return [
        replace(g, rollouts=tuple(replace(r, logprobs=tuple(next(left) for _ in r.token_ids)) for r in g.rollouts))
        for g in groups
    ]


def test_the_native_engine_is_the_trainer(session):
    """Its recorded log-probs are those of the update's first pass, so nothing would be corrected."""
    session = session(**options("grpo", token_budget=70))
    with awake(session.engine) as engine:
        sampling = SamplingParams(seed=(0, 0), temperature=TEMPERATURE, max_new_tokens=LIMIT)
        groups = list(engine.generate(mixed_prompts(session.loaded), sampling, n=3))
    assert engine.check().is_trainer
    metrics, _ = run(session, "grpo", groups, corrects="token_truncate")
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-5
    assert abs(metrics["sampling/kl"]) < 1e-9
    for kind in ("mean", "min", "max"):
        assert metrics[f"sampling/importance_sampling_ratio/{kind}"] == pytest.approx(1.0, abs=1e-5)
    metrics, _ = run(session, "grpo", groups, corrects="off")
    for kind in ("mean", "min", "max"):
        assert metrics[f"sampling/importance_sampling_ratio/{kind}"] == 1.0


def test_the_updates_weights_are_handed_on_whole(session):
    session = session(**options("grpo"))
    found = dict(Trainer(session, ALGORITHMS["grpo"], None).weights())
    expected = dict(session.policy.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and not found[name].requires_grad for name in found)
