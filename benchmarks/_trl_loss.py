"""Both sides of `trl_loss.py`: one batch of made-up completions through TRL's trainer and through our update.

Of TRL only the sampler is replaced (`_generate_single_turn` returns the made-up completions). Its own code tokenizes
the prompts, pads, computes advantages, old and reference log-probs (`_generate_and_score_completions`), and then the
loss (`compute_loss`). One thing is repaired for it: a prompt without images among prompts with images becomes `None`,
which transformers' image processor refuses, so it is handed on as an empty list.

Ours runs `Trainer.step`, with an optimiser that keeps the gradients instead of stepping on them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer

from vlm_r1.models.processor import load_processor
from vlm_r1.records import Prompt, Rollout, RolloutGroup
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.experience import Experience, batch_of
from vlm_r1.rl.step import Trainer
from vlm_r1.runtime.session import Session, open_session

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support import gradients, made_up, mixed_prompts, recipe, reference_of

TEMPERATURE, LIMIT = 0.9, 12
LENGTHS = ((1, 5, 12), (4, 1, 7), (2, 9, 6), (8, 3, 3))
REWARDS: tuple[tuple[float | None, ...], ...] = ((0.1, 0.9, 0.4), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.3, None, 0.8))
"""A group that teaches nothing and an answer that cannot be scored are among them."""
FROM_REFERENCE, FROM_OLD = 0.02, 0.02
"""Standard deviations of the noise between the reference's weights and those the completions are scored with first, and
between these and the weights of the second iteration: enough for ratios on both sides of the clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison: `rl` are our settings, `trl` the ones of `GRPOConfig` that mean the same.

    With `iterations` 2 the loss of the second is compared: old log-probs are those of other weights. `token_budget`
    cuts our batch into several rows; `suppressed` leaves image placeholders masked, which TRL does not. Unless
    `corrects` is "off", the completions are those of another engine, whose tokens both sides weigh so.
    """

    name: str
    algorithm: str = "grpo"
    rl: dict[str, Any] = field(default_factory=dict)
    trl: dict[str, Any] = field(default_factory=dict)
    iterations: int = 2
    token_budget: int = 16384
    suppressed: bool = False
    corrects: str = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The loss of the last iteration, its gradients by parameter name, its metrics, and the advantages `(B,)`."""

    loss: float
    gradients: dict[str, Tensor]
    metrics: dict[str, float]
    advantages: Tensor


class Recorder:
    """Stands in for the optimiser: keeps the last step's gradients and adds the same noise to the weights each time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.param_groups: list[dict[str, float]] = [{"lr": 0.0}]
        self.last: dict[str, Tensor] = {}

    def step(self) -> None:
        """Keep the gradients, move the weights."""
        self.last = gradients(self.model)
        move(self.model, FROM_OLD)

    def zero_grad(self) -> None:
        """Nothing is left to clear: `step` has done it."""


def move(model: nn.Module, by: float) -> None:
    """Add noise of this standard deviation to every parameter; the same for equal models."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def groups_of(session: Session) -> list[RolloutGroup]:
    """Prompts with none to three images of different sizes, and made-up completions of 1 to 12 tokens."""
    prompts = mixed_prompts(session.loaded)
    groups = [made_up(session.loaded, p, n, i) for i, (p, n) in enumerate(zip(prompts, LENGTHS, strict=True))]
    generator = torch.Generator().manual_seed(6)
    usual = -math.log(len(session.loaded.tokenizer))  # of a random model; the engine's are off by about a factor of 2

    def sampled(rollout: Rollout) -> Rollout:
        logprobs = usual + 0.7 * torch.randn(len(rollout.token_ids), generator=generator)
        return replace(rollout, logprobs=tuple(logprobs.tolist()))

    return [replace(group, rollouts=tuple(map(sampled, group.rollouts))) for group in groups]


@contextmanager
def open_case(model: Path, run_dir: Path, case: Case) -> Iterator[Session]:
    """A session of ours with the case's settings."""
    rl = {"algorithm": case.algorithm, "group_size": len(REWARDS[0]), "prompts_per_step": len(REWARDS)}
    rl |= {"iterations": case.iterations, "token_budget": case.token_budget, **case.rl}
    rollout = {"temperature": TEMPERATURE, "max_new_tokens": LIMIT}
    exact = {"precision": "float32"}
    with open_session(
        recipe(model, run_dir, model=exact, rl=rl, rollout=rollout, optim={"max_grad_norm": 1e9})
    ) as session:
        yield session


def ours(session: Session, groups: Sequence[RolloutGroup], case: Case) -> Outcome:
    """Our update's outcome.

    Unless the case says otherwise the suppressed list is emptied: our distribution has the image placeholders masked,
    because that is what rollouts sample from, and TRL scores with the whole vocabulary. The two softmaxes differ by
    construction, so they are compared without the mask, on completions that hold no placeholder.
    """
    policy, algorithm = session.loaded.policy, ALGORITHMS[case.algorithm]
    reference, own = reference_of(session)
    for scorer in (policy, own):
        if scorer is not None and not case.suppressed:
            scorer.suppressed = scorer.suppressed[:0]
    move(policy, FROM_REFERENCE)
    rewards_PG = torch.tensor([[float("nan") if r is None else r for r in row] for row in REWARDS])
    experience = Experience(groups=list(groups), rewards_PG=rewards_PG, advantages_PG=algorithm.advantage(rewards_PG))
    batch = batch_of(experience, algorithm, session.world, LIMIT, keep_all=reference is not None)
    session.optimizer = recorder = Recorder(policy)
    metrics = Trainer(session, algorithm, reference, case.corrects).step(batch, 0).values()
    found = {name.removeprefix("model."): gradient for name, gradient in recorder.last.items()}
    return Outcome(
        loss=metrics["loss"], gradients=found, metrics=metrics, advantages=experience.advantages_PG.flatten()
    )


def theirs(model: Path, folder: Path, groups: Sequence[RolloutGroup], case: Case) -> Outcome:
    """TRL's outcome on the same completions."""
    trainer = build_trainer(model, folder, case)
    if case.corrects != "off":  # vLLM itself is not needed: the sampler is replaced
        trainer.use_vllm, trainer.vllm_importance_sampling_correction = True, True
        trainer.vllm_importance_sampling_mode = case.corrects
        trainer.vllm_importance_sampling_clip_min, trainer.vllm_importance_sampling_clip_max = None, 3.0
    policy = trainer.model
    policy.train()
    move(policy, FROM_REFERENCE)
    answers = [list(rollout.token_ids) for group in groups for rollout in group.rollouts]

    sampler = [list(rollout.logprobs) for group in groups for rollout in group.rollouts]

    def made_up_answers(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], Any]:
        expected = [list(group.prompt.token_ids) for group in groups for _ in group.rollouts]
        if prompt_ids != expected:
            raise SystemExit("TRL's prompts have other tokens than ours; the losses cannot be compared")
        return answers, sampler if case.corrects != "off" else None

    tokenize = trainer._tokenize_prompts

    def without_none(prompts: list[Any]) -> Any:
        prompt_ids, images, fields = tokenize(prompts)
        return prompt_ids, [images or [] for images in images], fields

    trainer._tokenize_prompts = without_none
    trainer._generate_single_turn = made_up_answers
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([row_of(g.prompt) for g in groups for _ in g.rollouts])
    if (case.iterations > 1 or case.corrects != "off") != ("old_per_token_logps" in inputs):
        raise SystemExit("TRL did not take old log-probs as the case expects")
    for _ in range(case.iterations - 1):
        move(policy, FROM_OLD)
    loss = trainer.compute_loss(policy, inputs)
    loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
    return Outcome(
        loss=float(loss.detach()), gradients=gradients(policy), metrics=metrics, advantages=inputs["advantages"]
    )


def row_of(prompt: Prompt) -> dict[str, Any]:
    """A prompt as a row of TRL's conversational data."""
    sample = prompt.sample
    return {
        "prompt": [{"role": "user", "content": sample.question}],
        "images": [image.open() for image in sample.images],
    }


def build_trainer(model: Path, folder: Path, case: Case) -> GRPOTrainer:
    """TRL's trainer with the case's settings; the model is transformers' own with SDPA attention, in float32."""
    settings = {"loss_type": "grpo", "beta": 0.0, "epsilon": 0.2, "scale_rewards": "group"} | case.trl
    config = GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=sum(map(len, REWARDS)),
        gradient_accumulation_steps=1,
        num_generations=len(REWARDS[0]),
        num_iterations=case.iterations,
        max_completion_length=LIMIT,
        temperature=TEMPERATURE,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    config.model_init_kwargs = {"dtype": "float32", "attn_implementation": "sdpa"}
    flat = [reward for row in REWARDS for reward in row]

    processor = load_processor(model)
    processor.tokenizer.padding_side = "left"  # as TRL sets it where it loads the processor itself

    def given_rewards(completions: list[Any], **kwargs: Any) -> list[float | None]:
        return flat

    return GRPOTrainer(
        model=str(model),
        reward_funcs=given_rewards,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "?"}]}] * len(flat)),
        processing_class=processor,
    )
