"""The plan of a recipe: parameters by part, the step as it will be cut, and the memory of each phase by what it is for.

Sizes are those of one process. Answers are as long as `rollout.max_new_tokens` allows, and every group is trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from vlm_r1.config import Recipe, RolloutConfig
from vlm_r1.errors import ModelError
from vlm_r1.models.family import Part
from vlm_r1.models.packing import Tree, cut_by_budget
from vlm_r1.plan import phases
from vlm_r1.plan.prompts import Questions, answer_trees, encode, find_questions, taught_trees
from vlm_r1.plan.skeleton import Skeleton, build_skeleton
from vlm_r1.plan.trace import GRADIENTS, Bytes
from vlm_r1.records import Prompt

WEIGHTS, REFERENCE, OPTIMISER = "weights", "reference model", "optimiser"
SMALLEST_8BIT, BLOCK_8BIT = 4096, 256
"""bitsandbytes keeps smaller parameters' averages in float32, and one float32 scale for so many values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a recipe takes: parameters, the step's sizes in tokens, and bytes by phase and purpose.

    `pictures` are the tokens of each picture that was looked at, `prompts` those of the step's prompts (with
    `method: sft`, of its trees without their answers), `rows` those of the update's forward passes.
    """

    model_type: str
    questions: str
    parameters: dict[Part, int]
    trained: dict[Part, int]
    pictures: list[int]
    prompts: list[int]
    rows: list[int]
    phases: dict[str, Bytes]

    @property
    def peak(self) -> int:
        """The most bytes of any phase."""
        return max(phase.total() for phase in self.phases.values())

    @property
    def peak_phase(self) -> str:
        """The phase that takes the most."""
        return max(self.phases, key=lambda name: self.phases[name].total())


def make_plan(recipe: Recipe, questions: Questions | None = None) -> Plan:
    """The plan of a recipe; `questions` are those of its data, where they were read before.

    Raises `ModelError` and `ConfigError` as a run would, and `ModelError` for a model whose code asks for values.
    """
    questions = questions or find_questions(recipe)
    skeleton = build_skeleton(recipe)
    try:
        return _plan(recipe, questions, skeleton)
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        kind = skeleton.policy.model.config.model_type
        raise ModelError(
            f'model.path: the code of "{kind}" asks for values ({error.func}) where a plan has shapes alone; '
            "run a step with run.steps=1 and look at the memory it takes"
        ) from error


def _plan(recipe: Recipe, questions: Questions, skeleton: Skeleton) -> Plan:
    family = skeleton.loaded.family
    static = static_bytes(recipe, skeleton)
    found: dict[str, Bytes] = {}
    if recipe.method == "sft":
        trees = taught_trees(family, questions, recipe.sft.pictures_per_step, skeleton.fake)
        rows = cut_by_budget(trees, recipe.sft.token_budget)
        found["update"] = phases.update(skeleton, rows, 1.0, recipe)
    else:
        prompts = encode(family, questions, recipe.rl.prompts_per_step, skeleton.fake)
        trees = answer_trees(prompts, recipe.rl.group_size, recipe.rollout.max_new_tokens)
        rows = cut_by_budget(trees, recipe.rl.token_budget)
        found |= _step(skeleton, prompts, trees, rows, recipe)
    found = {name: phase + static for name, phase in found.items()}
    found["optimiser step"] = static + gradient_bytes(recipe, skeleton)
    if recipe.data.eval:
        batch = encode(family, questions, recipe.eval.batch_size, skeleton.fake)
        settings = RolloutConfig(max_new_tokens=recipe.eval.max_new_tokens)
        skeleton.policy.eval()
        found["evaluation"] = static + phases.roll_out(skeleton, batch, 1, settings, recipe)
    placeholders = torch.tensor(family.banned_token_ids())
    return Plan(
        model_type=family.model.config.model_type,
        questions=questions.source,
        parameters=skeleton.totals,
        trained=skeleton.trained,
        pictures=[int(torch.isin(t.token_ids, placeholders).sum()) // len(t.pictures) for t in trees if t.pictures],
        prompts=[len(tree.token_ids) for tree in trees],
        rows=[sum(tree.n_tokens for tree in row) for row in rows],
        phases=found,
    )


def _step(
    skeleton: Skeleton, prompts: Sequence[Prompt], trees: Sequence[Tree], rows: Sequence[list[Tree]], recipe: Recipe
) -> dict[str, Bytes]:
    """Rollout and update; the graph of the prompts is kept between them where `rl.experience.roll_out` keeps it."""
    if len(rows) == 1 and recipe.rl.reuse_prefill and not recipe.model.gradient_checkpointing:
        rollout, update = phases.update_from_rollout(skeleton, prompts, trees, recipe)
        return {"rollout": rollout, "update": update}
    skeleton.policy.train()
    alone = [Tree(token_ids=t.token_ids, positions=t.positions, pictures=t.pictures, branches=()) for t in trees]
    pieces = cut_by_budget(alone, recipe.rl.token_budget)
    largest = max(range(len(pieces)), key=lambda i: sum(tree.n_tokens for tree in pieces[i]))
    start = sum(len(piece) for piece in pieces[:largest])
    piece = prompts[start : start + len(pieces[largest])]
    return {
        "rollout": phases.roll_out(skeleton, piece, recipe.rl.group_size, recipe.rollout, recipe),
        "update": phases.update(skeleton, rows, recipe.rollout.temperature, recipe),
    }


def static_bytes(recipe: Recipe, skeleton: Skeleton) -> Bytes:
    """What is there throughout: weights, reference model, and the optimiser's state once it has stepped."""
    found: Bytes = Counter({WEIGHTS: skeleton.weight_bytes})
    own_reference = recipe.method == "grpo" and recipe.rl.beta and "lora" not in recipe.train.how().values()
    if own_reference and not recipe.rl.reference_offload:
        found[REFERENCE] = skeleton.weight_bytes
    optim = recipe.optim
    for count, size, matrix in skeleton.trained_parameters:
        if optim.master_weights:
            found[OPTIMISER] += 4 * count
            size = 4
        if "8bit" in optim.name and count >= SMALLEST_8BIT:
            found[OPTIMISER] += 2 * count + 2 * 4 * count // BLOCK_8BIT
        else:
            found[OPTIMISER] += (1 if optim.name == "muon" and matrix else 2) * size * count
    return found


def gradient_bytes(recipe: Recipe, skeleton: Skeleton) -> Bytes:
    """All gradients, and their float32 copies beside them where the optimiser has float32 weights of its own."""
    more = 4 if recipe.optim.master_weights else 0
    return Counter({GRADIENTS: sum(count * (size + more) for count, size, _ in skeleton.trained_parameters)})
