"""What to change in a recipe so that it fits a GPU, and what there is room for where it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError
from vlm_r1.plan.machine import GIB, Machine
from vlm_r1.plan.make import SERVER, Plan, make_plan
from vlm_r1.plan.phases import ANSWER_CACHE, PROMPT_CACHE
from vlm_r1.plan.prompts import Questions

MIN_SERVER_MEMORY = 0.2
"""Share of a GPU below which a server is not made smaller: it holds the weights, and room for completions."""
MIN_SAVING = 0.01
"""A change that saves a smaller share is not worth a line."""
MAX_PROCESSES = 64
GPUS_KEY = "--gpus"
Settings = Mapping[str, Any]
Option = tuple[Settings, str] | None
"""Settings to change and what that means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Settings to change, why they help and at what price, and the peak with them and all changes before them.

    The setting `--gpus` is the number of processes.
    """

    settings: Settings
    why: str
    saves: int
    peak: int


def advise(recipe: Recipe, plan: Plan, questions: Questions, machine: Machine) -> Iterator[Change]:
    """Changes that make the recipe fit, the harmless ones first; where it fits, those that make it faster.

    Each is planned with those before it. They end where it fits, or where nothing is left to change.
    """
    if plan.peak <= machine.room:
        yield from _faster(recipe, plan, questions, machine)
        return
    for option in OPTIONS * 2:  # what saves nothing at first may do so once something else is smaller
        while plan.peak > machine.room and (found := option(recipe, plan, questions)):
            settings, why = found
            planned = _try(recipe, settings, questions, machine)
            if planned is None or plan.peak - planned[1].peak < MIN_SAVING * plan.peak:
                break
            change = _change(recipe, settings, why, plan, planned[1])
            recipe, plan = planned
            yield change


def more_gpus(recipe: Recipe, plan: Plan, questions: Questions, machine: Machine) -> Change | None:
    """Twice the GPUs, or four times, and so on, until the recipe fits as it is; None where they do not help."""
    processes = machine.processes
    if not plan.shard_size and processes > 1:
        return None
    while (processes := 2 * processes) <= MAX_PROCESSES:
        try:
            wider = make_plan(recipe, questions, Machine(processes=processes, memory=machine.memory))
        except ConfigError:
            return None
        if wider.peak <= machine.room:
            why = "each GPU has its share of weights, gradients, optimizer states and prompts; the result is the same"
            return Change(settings={GPUS_KEY: processes}, why=why, saves=plan.peak - wider.peak, peak=wider.peak)
    return None


def _change(recipe: Recipe, settings: Settings, why: str, before: Plan, after: Plan) -> Change:
    old = recipe.model_dump()
    new = {key: value for key, value in settings.items() if _value(old, key) != value}
    return Change(settings=new, why=why, saves=before.peak - after.peak, peak=after.peak)


def _value(values: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return values[section][name]


def _try(recipe: Recipe, settings: Settings, questions: Questions, machine: Machine) -> tuple[Recipe, Plan] | None:
    """The changed recipe and its plan; None where the settings do not go together."""
    try:
        changed = changed_recipe(recipe, settings)
        return changed, make_plan(changed, questions, machine)
    except (ValidationError, ConfigError):
        return None


def changed_recipe(recipe: Recipe, settings: Settings) -> Recipe:
    """The recipe with these dotted keys set to these values."""
    values = recipe.model_dump()
    for key, value in settings.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    return Recipe.model_validate(values)


def _faster(recipe: Recipe, plan: Plan, questions: Questions, machine: Machine) -> Iterator[Change]:
    if recipe.model.gradient_checkpointing is True:
        settings: Settings = {"model.gradient_checkpointing": False}
        planned = _try(recipe, settings, questions, machine)
        if planned is not None and planned[1].peak <= machine.room:
            change = _change(recipe, settings, "nothing is computed twice", plan, planned[1])
            recipe, plan = planned
            yield change
    key, budget = _budget(recipe)
    best: tuple[Settings, Plan] | None = None
    while len(plan.rows) > 1 and budget < sum(plan.rows):
        budget = min(2 * budget, sum(plan.rows))
        planned = _try(recipe, {key: budget}, questions, machine)
        if planned is None or planned[1].peak > machine.room:
            break
        best = {key: budget}, planned[1]
    if best:
        why = f"{_passes(best[1])} a step instead of {len(plan.rows)}"
        yield _change(recipe, best[0], why, plan, best[1])


def _passes(plan: Plan) -> str:
    return "1 forward pass" if len(plan.rows) == 1 else f"{len(plan.rows)} forward passes"


def _budget(recipe: Recipe) -> tuple[str, int]:
    """The key of the token budget and its value."""
    if recipe.method == "sft":
        return "sft.token_budget", recipe.sft.token_budget
    return "rl.token_budget", recipe.rl.token_budget


def _checkpointing(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    if recipe.model.gradient_checkpointing is True:
        return None
    return {"model.gradient_checkpointing": True}, "activations are computed again: about a third more time"


def _less_cache(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    phase = plan.phases[plan.peak_phase]
    cache = phase[PROMPT_CACHE] + phase[ANSWER_CACHE]
    if plan.peak_phase not in ("rollout", "evaluation") or plan.sequences <= recipe.rl.group_size or not cache:
        return None
    return {"rollout.kv_cache_gb": float(f"{cache / 2 / GIB:.3g}")}, "fewer answers at once; the result is the same"


def _fewer_sequences(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    if plan.peak_phase != "rollout" or plan.sequences < 2:
        return None
    return {"rollout.max_sequences": plan.sequences // 2}, "fewer answers at once; the result is the same"


def _smaller_server(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    share = recipe.rollout.server_memory
    if plan.peak_phase != "rollout" or not plan.phases["rollout"][SERVER] or share < MIN_SERVER_MEMORY:
        return None
    return {"rollout.server_memory": round(share * 0.75, 3)}, "fewer answers at once; the result is the same"


def _less_budget(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    least = max(plan.prompts) + (recipe.rollout.max_new_tokens if recipe.method == "grpo" else 0)
    budget = max(least, max(plan.rows) // 2)
    return ({_budget(recipe)[0]: budget}, "smaller forward passes; the result is the same")


def _offload(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    has = recipe.method == "grpo" and recipe.rl.beta and not _lora_runs(recipe) and not recipe.rl.reference_offload
    return ({"rl.reference_offload": True}, "the reference model waits in CPU memory") if has else None


def _bfloat16(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    full = recipe.model.precision == "float32"
    return ({"model.precision": "bfloat16"}, "computes in bfloat16; trained weights stay float32") if full else None


def _small_moments(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    usual = recipe.optim.name == "adamw" and not plan.shard_size
    return ({"optim.name": "adamw_8bit"}, "AdamW's moments in 8 bits (bitsandbytes)") if usual else None


def _frozen_tower(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    how = recipe.train.how()
    if _lora_runs(recipe) or how["vision"] == how["connector"] == "frozen":
        return None
    return {"train.vision": "frozen", "train.connector": "frozen"}, "the tower stays as it is"


def _adapter(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    if _lora_runs(recipe):
        return None
    settings = {"train.vision": "frozen", "train.connector": "frozen", "train.language": "lora"}
    settings |= {"rl.reference_offload": False, "optim.name": "adamw"}  # type: ignore[dict-item]
    return settings, "trains an adapter, at a higher optim.lr; the reference is the same model without it"


def _four_bits(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    can = _lora_runs(recipe) and recipe.model.quantize == "none"
    return ({"model.quantize": "nf4"}, "the frozen language model in 4 bits (bitsandbytes)") if can else None


def _smaller_images(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    pixels = _pixels(recipe, questions)
    return ({"model.max_pixels": pixels // 2}, "the model sees less of an image") if pixels > 1 else None


def _fewer_prompts(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    count = recipe.rl.prompts_per_step if recipe.method == "grpo" else 1
    return ({"rl.prompts_per_step": count // 2}, "fewer questions a step") if count > 1 else None


OPTIONS = (
    _checkpointing,
    _less_cache,
    _fewer_sequences,
    _smaller_server,
    _less_budget,
    _offload,
    _bfloat16,
    _small_moments,
    _frozen_tower,
    _adapter,
    _four_bits,
    _smaller_images,
    _fewer_prompts,
)
"""Ways to take less memory, from what only takes time to what changes what is learned; None where one is in use."""


def _lora_runs(recipe: Recipe) -> bool:
    return "lora" in recipe.train.how().values()


def _pixels(recipe: Recipe, questions: Questions) -> int:
    """Pixels of the largest image as the model may see it; 0 without images."""
    sizes = [width * height for group in questions.groups for p in group[0].images for width, height in [p.size]]
    return min(max(sizes, default=0), recipe.model.max_pixels or max(sizes, default=0))
