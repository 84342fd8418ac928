"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vlm_r1.config import Recipe
from vlm_r1.plan.advice import Change
from vlm_r1.plan.generation import Cost, Division, Phases, Split
from vlm_r1.plan.machine import GIB, Machine
from vlm_r1.plan.make import Plan

MIB = 2**20


def plan_text(plan: Plan, recipe: Recipe) -> str:
    """Parameters, the step's sizes, and a table of memory by phase."""
    return "\n".join(
        [*_parameters(plan, recipe), "", *_processes(plan, recipe), *_step(plan, recipe), "", *_table(plan)]
    )


def _parameters(plan: Plan, recipe: Recipe) -> list[str]:
    how = recipe.train.how()
    lines = [f"{plan.model_type}: {sum(plan.parameters.values()):,} parameters, {sum(plan.trained.values()):,} trained"]
    for part, count in plan.parameters.items():
        lines.append(f"  {part:<10}{count:>16,}   trained {plan.trained[part]:,} ({how[part]})")
    return lines


def _processes(plan: Plan, recipe: Recipe) -> list[str]:
    how = {True: "on", False: "off", "auto": "off (auto)"}[recipe.model.gradient_checkpointing]
    lines = [f"precision   {plan.precision}, gradient checkpointing {how}"]
    if plan.processes > 1:
        held = f"{plan.shard_size} hold one copy of the weights" if plan.shard_size else "each holds all weights"
        lines.append(f"processes   {plan.processes}, {held}; what follows is for the one with the most to do")
    return lines


def _step(plan: Plan, recipe: Recipe) -> list[str]:
    if recipe.method == "sft":
        groups = f"{len(plan.prompts)} prefix groups of {_span(plan.prompts)} tokens before their completions"
        asked = f"{recipe.sft.images_per_step} images, {groups}"
        budget = f"sft.token_budget {recipe.sft.token_budget:,}"
    else:
        asked = f"{len(plan.prompts)} prompts of {_span(plan.prompts)} tokens, {recipe.rl.group_size} answers each of "
        decoded = "by vLLM servers" if recipe.rollout.engine == "vllm" else f"at most {plan.sequences} at once"
        asked += f"up to {recipe.rollout.max_new_tokens}, {decoded}"
        budget = f"rl.token_budget {recipe.rl.token_budget:,}"
    passes = "1 forward pass" if len(plan.rows) == 1 else f"{len(plan.rows)} forward passes"
    return [
        f"step        {asked}",
        f"images      {_span(plan.images)} tokens each" if plan.images else "images      none",
        f"questions   {plan.questions}",
        f"update      {passes} of at most {max(plan.rows):,} tokens ({budget})",
    ]


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(plan: Plan) -> list[str]:
    unit, name = (GIB, "GiB") if plan.peak >= GIB else (MIB, "MiB")
    names = dict.fromkeys(key for phase in plan.phases.values() for key in phase)
    rows = [[name, *plan.phases]]
    for key in sorted(names, key=lambda n: -max(phase[n] for phase in plan.phases.values())):
        if any(phase[key] >= 0.005 * unit for phase in plan.phases.values()):
            cells = (phase[key] / unit for phase in plan.phases.values())
            rows.append([key, *(f"{cell:.2f}" if cell else "" for cell in cells)])
    rows.append(["peak memory", *(f"{phase.total() / unit:.2f}" for phase in plan.phases.values())])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def fit_text(plan: Plan, machine: Machine) -> str:
    """Whether it fits."""
    fits = "fits" if plan.peak <= machine.room else "does not fit"
    peak = f"peak memory {plan.peak / GIB:.2f} GiB ({plan.peak_phase})"
    gpus = f"each of {machine.processes} GPUs with" if machine.processes > 1 else "a GPU with"
    return f"{peak} {fits} in {gpus} {(machine.memory or 0) / GIB:g} GiB, of which {machine.room / GIB:.1f} are usable"


def change_text(change: Change) -> str:
    """One line of advice."""
    keys = " ".join(
        f"{key} {value}" if key.startswith("--") else f"{key}={str(value).lower()}"
        for key, value in change.settings.items()
    )
    what = f"saves {change.saves / GIB:.2f}" if change.saves >= 0 else f"takes {-change.saves / GIB:.2f} more"
    return f"  {keys}\n      {what}, peak {change.peak / GIB:.2f} GiB: {change.why}"


def as_json(plan: Plan, machine: Machine, changes: Sequence[Change]) -> dict[str, Any]:
    """Everything as plain numbers; sizes are bytes."""
    found = asdict(plan) | {"peak": plan.peak, "peak_phase": plan.peak_phase}
    found["phases"] = {name: dict(phase) for name, phase in plan.phases.items()}
    if machine.memory is not None:
        fits = plan.peak <= machine.room
        found |= {"gpu_memory": machine.memory, "fits": fits, "changes": [asdict(change) for change in changes]}
    return found


def division_text(phases: Phases, division: Division) -> str:
    """The phase times, a table of splits, and the best of them beside colocated servers."""
    staleness = max(division.best.step_s)
    shown = [split for split in division.splits if split.generation_gpus % division.unit == 0]
    if division.best not in shown:
        shown = sorted([*shown, division.best], key=lambda split: split.generation_gpus)
    rows = [["GPUs for", "GPUs for", "seconds of", "seconds of", *("seconds of a" for _ in division.best.step_s)]]
    rows += [
        ["generation", "training", "generation", "training", *(f"step, staleness {k}" for k in division.best.step_s)]
    ]
    for split in shown:
        times = (split.generation_s, split.training_s, *split.step_s.values())
        marks = ["best"] * (split == division.best) + ["knee"] * (split == division.knee)
        rows.append([f"{split.generation_gpus}", f"{split.training_gpus}", *map(_seconds, times), ", ".join(marks)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join([*map(str.rjust, row, widths), *row[len(widths) :]]).rstrip() for row in rows]
    best, knee = division.best, division.knee
    return "\n".join(
        [
            f"{phases.prompts} prompts a step, sync {_seconds(phases.sync_on(1))} s",
            f"generation  {_cost(phases.generation)}",
            f"training    {_cost(phases.training)}",
            *_unknown(phases),
            "",
            *table,
            "",
            f"colocated   {_seconds(division.colocated_s)} s a step: all {division.gpus} GPUs generate, then train",
            f"best        {_seconds(best.step_s[staleness])} s a step with {_named(best)} (staleness {staleness})",
            f"knee        {_seconds(knee.step_s[staleness])} s a step with {_named(knee)}: more gain less than 5 % for "
            f"{'another GPU' if division.unit == 1 else f'another {division.unit}'}",
        ]
    )


def _unknown(phases: Phases) -> list[str]:
    """What the phase times do not say."""
    lines = []
    if not phases.generation.fixed_s and not phases.training.fixed_s:
        lines.append(
            "No part of a phase is known that stays the same on more GPUs, so these times are too good for many GPUs: "
            "add --from-run for a second run with another rl.prompts_per_step"
        )
    if phases.sync_on(1) < 1e-3:
        lines.append("No sync was measured: give --sync-s, or a run with servers")
    return lines


def division_json(phases: Phases, division: Division) -> dict[str, Any]:
    """The same as plain numbers; times are seconds."""
    return {"phases": phases.model_dump()} | asdict(division)


def _named(split: Split) -> str:
    return f"{split.generation_gpus} GPUs for generation and {split.training_gpus} for training"


def _cost(cost: Cost) -> str:
    return f"{_seconds(cost.fixed_s)} s + {_seconds(cost.prompt_s)} s a prompt on a GPU"


def _seconds(seconds: float) -> str:
    return "0" if seconds < 1e-4 else f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
