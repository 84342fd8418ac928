"""What to change in a recipe so that it fits a card, and what there is room for where it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from vlm_r1.config import Recipe
from vlm_r1.errors import ConfigError, nearest
from vlm_r1.plan.make import Plan, make_plan
from vlm_r1.plan.phases import KEPT_GRAPH
from vlm_r1.plan.prompts import Questions

GIB = 2**30
CARDS = {
    "T4": 16,
    "V100": 32,
    "A10": 24,
    "L4": 24,
    "RTX3090": 24,
    "RTX4090": 24,
    "RTX5090": 32,
    "A40": 48,
    "A6000": 48,
    "L40S": 48,
    "A100": 80,
    "H100": 80,
    "H200": 141,
    "B200": 180,
    "MI300X": 192,
}
"""Memory of a card in GiB, of the larger kind where there are two."""
USABLE = 0.9
"""Share of a card that tensors can fill: CUDA itself and gaps between tensors take the rest."""
LEAST_SAVING = 0.01
"""A change that saves a smaller share is not worth a line."""
Settings = Mapping[str, Any]
Option = tuple[Settings, str] | None
"""Settings to change and what that means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Settings to change, why they help and at what price, and the peak with them and all changes before them."""

    settings: Settings
    why: str
    saves: int
    peak: int


def card_bytes(text: str) -> int:
    """Memory of a card given in GiB or by its name. Raises `ConfigError` for any other text."""
    name = text.upper().replace("NVIDIA", "").replace("GEFORCE", "").replace(" ", "").replace("-", "")
    size: float | None = CARDS.get(name, CARDS.get(f"RTX{name}"))
    if size is None:
        try:
            size = float(text)
        except ValueError:
            raise ConfigError(f'--card "{text}": give its memory in GiB, or a name; {nearest(name, CARDS)}') from None
    if not 0 < size < 1e6:
        raise ConfigError(f"--card {text}: the memory must be a number of GiB above 0")
    return int(size * GIB)


def advise(recipe: Recipe, plan: Plan, questions: Questions, card: int) -> Iterator[Change]:
    """Changes that make the recipe fit, the harmless ones first; where it fits, those that make it faster.

    Each is planned with those before it. They end where it fits, or where nothing is left to change.
    """
    room = int(card * USABLE)
    if plan.peak <= room:
        yield from _faster(recipe, plan, questions, room)
        return
    for option in OPTIONS * 2:  # what saves nothing at first may do so once something else is smaller
        while plan.peak > room and (found := option(recipe, plan, questions)):
            settings, why = found
            planned = _try(recipe, settings, questions)
            if planned is None or plan.peak - planned[1].peak < LEAST_SAVING * plan.peak:
                break
            change = _change(recipe, settings, why, plan, planned[1])
            recipe, plan = planned
            yield change


def _change(recipe: Recipe, settings: Settings, why: str, before: Plan, after: Plan) -> Change:
    old = recipe.model_dump()
    new = {key: value for key, value in settings.items() if _value(old, key) != value}
    return Change(settings=new, why=why, saves=before.peak - after.peak, peak=after.peak)


def _value(values: Mapping[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return values[section][name]


def _try(recipe: Recipe, settings: Settings, questions: Questions) -> tuple[Recipe, Plan] | None:
    """The changed recipe and its plan; None where the settings do not go together."""
    values = recipe.model_dump()
    for key, value in settings.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    try:
        changed = Recipe.model_validate(values)
        return changed, make_plan(changed, questions)
    except (ValidationError, ConfigError):
        return None


def _faster(recipe: Recipe, plan: Plan, questions: Questions, room: int) -> Iterator[Change]:
    if recipe.model.gradient_checkpointing:
        settings: Settings = {"model.gradient_checkpointing": False}
        planned = _try(recipe, settings, questions)
        if planned is not None and planned[1].peak <= room:
            change = _change(recipe, settings, "nothing is computed twice", plan, planned[1])
            recipe, plan = planned
            yield change
    key, budget = _budget(recipe)
    best: tuple[Settings, Plan] | None = None
    while len(plan.rows) > 1 and budget < sum(plan.rows):
        budget = min(2 * budget, sum(plan.rows))
        planned = _try(recipe, {key: budget}, questions)
        if planned is None or planned[1].peak > room:
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


def _no_graph(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    kept = any(KEPT_GRAPH in phase for phase in plan.phases.values())
    return ({"rl.reuse_prefill": False}, "the prompts run again in the update") if kept else None


def _checkpointing(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    if recipe.model.gradient_checkpointing:
        return None
    return {"model.gradient_checkpointing": True}, "activations are computed again: about a third more time"


def _less_budget(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    least = max(plan.prompts) + (recipe.rollout.max_new_tokens if recipe.method == "grpo" else 0)
    budget = max(least, max(plan.rows) // 2)
    return ({_budget(recipe)[0]: budget}, "smaller forward passes; the result is the same")


def _offload(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    has = recipe.method == "grpo" and recipe.rl.beta and not _lora_runs(recipe) and not recipe.rl.reference_offload
    return ({"rl.reference_offload": True}, "the reference model waits in CPU memory") if has else None


def _autocast(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    full = recipe.model.autocast == "no" and recipe.model.dtype == "float32"
    return ({"model.autocast": "bf16"}, "computes in bfloat16 over float32 weights") if full else None


def _small_averages(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    usual = recipe.optim.name == "adamw"
    return ({"optim.name": "adamw_8bit"}, "AdamW's averages in 8 bits (bitsandbytes)") if usual else None


def _frozen_tower(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    how = recipe.train.how()
    if _lora_runs(recipe) or how["vision"] == how["connector"] == "frozen":
        return None
    return {"train.vision": "frozen", "train.connector": "frozen"}, "the tower stays as it is"


def _adapter(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    if _lora_runs(recipe):
        return None
    settings = {"train.vision": "frozen", "train.connector": "frozen", "train.language": "lora"}
    settings |= {"rl.reference_offload": False, "optim.name": "adamw", "optim.master_weights": False}  # type: ignore[dict-item]
    return settings, "trains an adapter, at a higher optim.lr; the reference is the same model without it"


def _four_bits(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    can = _lora_runs(recipe) and recipe.model.quantize == "none"
    return ({"model.quantize": "nf4"}, "the frozen language model in 4 bits (bitsandbytes)") if can else None


def _smaller_pictures(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    pixels = _pixels(recipe, questions)
    return ({"model.max_pixels": pixels // 2}, "the model sees less of a picture") if pixels > 1 else None


def _fewer_prompts(recipe: Recipe, plan: Plan, questions: Questions) -> Option:
    count = recipe.rl.prompts_per_step if recipe.method == "grpo" else 1
    return ({"rl.prompts_per_step": count // 2}, "fewer questions a step") if count > 1 else None


OPTIONS = (
    _no_graph,
    _checkpointing,
    _less_budget,
    _offload,
    _autocast,
    _small_averages,
    _frozen_tower,
    _adapter,
    _four_bits,
    _smaller_pictures,
    _fewer_prompts,
)
"""Ways to take less memory, from what only takes time to what changes what is learned; None where one is in use."""


def _lora_runs(recipe: Recipe) -> bool:
    return "lora" in recipe.train.how().values()


def _pixels(recipe: Recipe, questions: Questions) -> int:
    """Pixels of the largest picture as the model may see it; 0 without pictures."""
    sizes = [width * height for group in questions.groups for p in group[0].images for width, height in [p.size]]
    return min(max(sizes, default=0), recipe.model.max_pixels or max(sizes, default=0))
