"""The plan of a recipe: parameters by part, the step as it will be cut, and the memory of each phase by what it is for.

Sizes are those of one process, the one with the most to do. Answers are as long as `rollout.max_new_tokens` allows,
and every group is trained on.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError, ModelError
from vlm_r1.models.family import Part
from vlm_r1.models.packing import PrefixGroup, cut_by_budget
from vlm_r1.plan import phases
from vlm_r1.plan.machine import Machine
from vlm_r1.plan.phases import gradient_bytes
from vlm_r1.plan.prompts import Questions, answer_trees, encode, find_questions, shares, taught_trees
from vlm_r1.plan.skeleton import Skeleton, build_skeleton
from vlm_r1.plan.trace import Bytes
from vlm_r1.plan.units import gathered_for_answers, gathers_by_layer
from vlm_r1.records import Prompt, SamplingParams
from vlm_r1.rl.rollouts import sampling_of
from vlm_r1.rollout.concurrency import Limits, Piece, cut, kv_bytes_on_gpu, kv_bytes_per_token, longest_answer

WEIGHTS, REFERENCE, OPTIMIZER, SERVER = "weights", "reference model", "optimizer states", "vLLM server"
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
"""bitsandbytes keeps smaller parameters' moments in float32, and one float32 scale for so many values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe takes: parameters, the step's sizes in tokens, and bytes of one process by phase and purpose.

    `precision` is what the model computes in; `shard_size` processes of `processes` hold one copy of the weights, 0
    where each process holds all. `images` are the tokens of each image that was looked at, `prompts` those of the
    prompts of one process in a step (with `method: sft`, of its prefix groups without their answers), `sequences` the
    answers that are decoded at once, `rows` the tokens of the update's forward passes.
    """

    model_type: str
    questions: str
    precision: str
    processes: int
    shard_size: int
    parameters: dict[Part, int]
    trained: dict[Part, int]
    images: list[int]
    prompts: list[int]
    sequences: int
    rows: list[int]
    phases: dict[str, Bytes]

    @property
    def peak(self) -> int:
        """Peak memory in bytes."""
        return max(phase.total() for phase in self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=lambda name: self.phases[name].total())


def make_plan(recipe: Recipe, questions: Questions | None = None, machine: Machine | None = None) -> Plan:
    """The plan of a recipe; `questions` are those of its data, where they were read before.

    `machine` defaults to one process. `model.precision: auto` is bfloat16 here, as on a GPU, and
    `model.gradient_checkpointing: auto` is off (`plan.fit` settles it). Raises `ModelError` and `ConfigError` as a run
    would, and `ModelError` for a model whose code asks for values.
    """
    questions = questions or find_questions(recipe)
    machine = machine or Machine()
    skeleton = build_skeleton(recipe, machine)
    if skeleton.units and recipe.optim.name != "adamw":
        raise ConfigError(
            f"optim.name: {recipe.optim.name} cannot step on sharded weights; use adamw, whose state is sharded too"
        )
    try:
        return _plan(recipe, questions, skeleton, machine)
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        kind = skeleton.policy.model.config.model_type
        raise ModelError(
            f'model.path: the code of "{kind}" asks for values ({error.func}) where a plan has shapes alone; '
            "run a step with run.steps=1 and look at the memory it takes"
        ) from error


def _plan(recipe: Recipe, questions: Questions, skeleton: Skeleton, machine: Machine) -> Plan:
    family = skeleton.loaded.family
    static = static_bytes(recipe, skeleton)
    found: dict[str, Bytes] = {}
    sequences = 0
    layers = machine.processes > 1 and gathers_by_layer(skeleton.units.values(), recipe.rollout.gather, machine.memory)
    prefix_groups, rows, accumulates = _rows(recipe, questions, skeleton, machine)
    served = recipe.method == "grpo" and recipe.rollout.engine == "vllm"
    if served and not recipe.rollout.servers and machine.memory is not None:  # they sleep otherwise
        found["rollout"] = Counter({SERVER: int(recipe.rollout.server_memory * machine.memory)})
    elif recipe.method == "grpo" and recipe.rollout.engine == "native":
        prompts = max(_prompts(recipe, questions, skeleton, machine), key=_work)
        limits = _limits(recipe, skeleton, machine, static)
        sampling = sampling_of(recipe, 0)
        longest = longest_answer(sampling, prompts)
        piece = _largest(prompts, recipe.rl.group_size, longest, limits)
        sequences = len(piece.prompts) * piece.count
        whole = replace(sampling, max_new_tokens=longest)
        found["rollout"] = phases.roll_out(skeleton, piece, whole, layers=layers)
    if recipe.method == "grpo":
        found["update"] = phases.update(skeleton, rows, recipe.rollout.temperature, accumulates=accumulates)
    else:  # one row is packed after the other
        largest = max(rows, key=lambda prefix_groups: sum(group.n_tokens for group in prefix_groups))
        found["update"] = phases.update(skeleton, [largest], 1.0, accumulates=accumulates)
    found["optimizer step"] = gradient_bytes(skeleton)
    if recipe.data.eval and not served:
        batch = encode(family, questions.take(recipe.eval.batch_size), skeleton.fake)
        limits = _limits(recipe, skeleton, machine, static)
        asked = SamplingParams(max_new_tokens=recipe.eval.max_new_tokens, max_calls=recipe.max_calls)
        longest = longest_answer(asked, batch)
        piece = _largest(batch, 1, longest, limits)
        sampling = SamplingParams(max_new_tokens=longest)
        found["evaluation"] = phases.roll_out(skeleton, piece, sampling, layers=layers)
    placeholders = torch.tensor(family.banned_token_ids())
    return Plan(
        model_type=family.model.config.model_type,
        questions=questions.source,
        precision=str(skeleton.policy.compute_dtype).removeprefix("torch."),
        processes=machine.processes,
        shard_size=skeleton.shards if skeleton.units else 0,
        parameters=skeleton.totals,
        trained=skeleton.trained,
        images=[int(torch.isin(t.token_ids, placeholders).sum()) // len(t.images) for t in prefix_groups if t.images],
        prompts=[len(group.token_ids) for group in prefix_groups],
        sequences=sequences,
        rows=[sum(group.n_tokens for group in row) for row in rows],
        phases={name: phase + static for name, phase in found.items()},
    )


def _prompts(recipe: Recipe, questions: Questions, skeleton: Skeleton, machine: Machine) -> list[list[Prompt]]:
    """The prompts of each process."""
    family = skeleton.loaded.family
    dealt = shares(questions.take(recipe.rl.prompts_per_step), family, machine.processes)
    return [encode(family, groups, skeleton.fake) for groups in dealt]


def _work(items: Sequence[Prompt] | Sequence[PrefixGroup]) -> tuple[int, int]:
    return len(items), sum(len(item.token_ids) for item in items)


def _rows(
    recipe: Recipe, questions: Questions, skeleton: Skeleton, machine: Machine
) -> tuple[list[PrefixGroup], list[list[PrefixGroup]], bool]:
    """The prefix groups of the process with the most to do, the rows that they are cut into, and whether any process
    adds up gradients over several rows: then all of them do.
    """
    if recipe.method == "sft":
        family, budget = skeleton.loaded.family, recipe.sft.token_budget
        dealt = shares(questions.take(recipe.sft.images_per_step), family, machine.processes)
        prefix_groups = [taught_trees(family, groups, skeleton.fake) for groups in dealt]
    else:
        G, budget, sampling = recipe.rl.group_size, recipe.rl.token_budget, sampling_of(recipe, 0)
        dealt_prompts = _prompts(recipe, questions, skeleton, machine)
        prefix_groups = [answer_trees(own, G, longest_answer(sampling, own)) for own in dealt_prompts]
    mine = max(prefix_groups, key=_work)
    return mine, cut_by_budget(mine, budget), any(len(cut_by_budget(other, budget)) > 1 for other in prefix_groups)


def _limits(recipe: Recipe, skeleton: Skeleton, machine: Machine, static: Bytes) -> Limits:
    """What `rollout.concurrency.limits_of` allows on the machine's GPU; without one, as much as is asked for."""
    settings = recipe.rollout
    kv_bytes = sys.maxsize
    if settings.kv_cache_gb is not None:
        kv_bytes = int(settings.kv_cache_gb * 2**30)
    elif machine.memory is not None:
        layers = gathers_by_layer(skeleton.units.values(), settings.gather, machine.memory)
        gathered, _ = gathered_for_answers(skeleton.units.values(), machine.processes > 1 and layers)
        kv_bytes = kv_bytes_on_gpu(machine.memory, static.total() + gathered)
    per_token = kv_bytes_per_token(skeleton.policy)
    return Limits(sequences=settings.max_sequences, kv_bytes=kv_bytes, per_token=per_token)


def _largest(prompts: Sequence[Prompt], n: int, max_new_tokens: int, limits: Limits) -> Piece:
    """The piece of a rollout with the most tokens."""

    def tokens(piece: Piece) -> int:
        return sum(len(p.token_ids) + piece.count * max_new_tokens for p in piece.prompts)

    return max(cut(prompts, n, max_new_tokens, limits), key=tokens)


def static_bytes(recipe: Recipe, skeleton: Skeleton) -> Bytes:
    """What is there throughout: weights, reference model, and the optimizer's state once it has stepped."""
    found: Bytes = Counter({WEIGHTS: skeleton.weight_bytes})
    own = recipe.method == "grpo" and recipe.rl.beta and "lora" not in recipe.train.how().values()
    if own and not recipe.rl.reference_offload:
        found[REFERENCE] = skeleton.reference_bytes
    optim = recipe.optim
    for count, matrix in skeleton.trained_parameters:
        if "8bit" in optim.name and count >= SMALLEST_8BIT:
            found[OPTIMIZER] += 2 * count + 2 * 4 * count // BLOCK_8BIT
        else:
            found[OPTIMIZER] += (1 if optim.name == "muon" and matrix else 2) * 4 * count
    return found
