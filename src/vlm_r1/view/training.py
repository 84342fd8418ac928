"""What the page says about the training of one run, or of several side by side: facts, warnings and curves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_r1.errors import CheckpointError
from vlm_r1.report.curves import PLANS, Line, curve, held_out_lines, logged_names, matching, named
from vlm_r1.report.findings import metric_name, number
from vlm_r1.report.html import duration
from vlm_r1.report.plots import Plot, plots
from vlm_r1.report.runs import is_running
from vlm_r1.report.warnings import sentences
from vlm_r1.runtime.alive import is_alive
from vlm_r1.runtime.shown import is_step
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.settings import recipe_of

Plan = tuple[str, str, Callable[..., list[Line]]]

WARNINGS_SHOWN = 5
"""The latest warnings of each run."""

_REPORT = {plan[0]: plan for plan in PLANS}
_OTHER_HELD_OUT = ("mAP", "AP50", "GP", "GR", "nms_ap", "well_formed")

SECTIONS: dict[str, list[Plan]] = {
    "Reward": [_REPORT[name] for name in ("Reward", "Reward parts", "Spread of rewards", "Groups without a signal")],
    "Held-out questions": [
        *(_REPORT[name] for name in ("Held-out Acc@0.5", "Held-out mean IoU", "Held-out accuracy")),
        *(
            (f"Held-out {metric_name(name).replace('_', ' ')}", "greedy answers", held_out_lines(name))
            for name in _OTHER_HELD_OUT
        ),
    ],
    "Answers": [
        _REPORT["Answer length"],
        ("Cut answers", "share that reached the token limit", named("answers/truncated")),
        ("Unreadable answers", "share of a step's answers", matching("parse/(.+)")),
        ("Faults of form", "share of a step's answers", matching("format/(.+)")),
    ],
    "Optimisation": [
        *(_REPORT[name] for name in ("Loss", "KL to the reference model", "Clipped tokens", "Gradient norm")),
        ("Entropy", "nats a token", named("entropy")),
        ("Sampler against trainer", "log-prob difference a token", matching("sampling/sampling_logp_difference/(.+)")),
        ("Importance weights", "trainer over sampler", matching("sampling/importance_sampling_ratio/(.+)")),
        _REPORT["Learning rate"],
    ],
    "Diagnostics": [
        ("Boxes", "answered over true boxes", named("boxes/pred_per_true")),
        ("Odd boxes", "share of answered boxes", matching("boxes/(.+)_share")),
        ("Dropped boxes", "malformed, reversed or empty, an answer", named("boxes/dropped_per_answer")),
        ("Not scorable", "share of a step's answers", named("score/not_scorable")),
        ("Shadow rewards", "not trained on", matching("shadow/(.+)/mean")),
        ("Features from the cache", "share of a step's images", named("vision_cache/hit_rate")),
        ("Reward faults", "how often since the start", matching("rewards/counts/(.+)")),
    ],
    "Time": [
        _REPORT["Time of a step"],
        ("Tokens of a step", "", matching("tokens/(prompt|answer)")),
        ("Collectives", "share of a step, with several processes", named("time/collectives_share")),
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One run in a line: `state` is "running", "finished" or "stopped"; `facts` are short phrases."""

    name: str
    state: str
    facts: tuple[str, ...]
    problems: tuple[str, ...]


def sections(runs: Sequence[RunFolder]) -> list[tuple[str, list[Plot]]]:
    """The charts that the runs have data for, under their headings."""
    metrics = [run.thinned() for run in runs]
    evaluations = [run.evaluations() for run in runs]
    names = set(logged_names(metrics))
    found = []
    for heading, plans in SECTIONS.items():
        drawn: list[Plot] = []
        for title, note, make in plans:
            lines = make(metrics, evaluations)
            if len(lines) == 1 and lines[0].label in names:
                lines = [Line(label="", runs=lines[0].runs)]
            if not (title.startswith(("KL", "Clipped")) and _all_zero(lines)):
                drawn += plots(title, note, lines, [run.name for run in runs])
        if drawn:
            found.append((heading, drawn))
    return found


def status(run: RunFolder, now: float | None = None) -> Status:
    """Where a run stands: its step, how fast it goes, how long it will take, and when it last wrote."""
    now = time.time() if now is None else now
    rows, recipe = run.metrics(), recipe_of(run)
    of = recipe.get("run", {})
    steps = of.get("steps") if isinstance(of, dict) else None
    steps = steps if is_step(steps) else None
    facts = [_method(recipe)] if _method(recipe) else []
    last = rows[-1]["step"] if rows else 0
    facts.append(f"step {last:,}" + (f" of {steps:,}" if steps else "") if rows else "no step yet")
    pace = [value for _, value in curve(rows[-20:], "time/step_s")]
    seconds = sum(pace) / len(pace) if pace else 0.0
    quiet = max(0.0, now - run.written)
    tell, alive, runs_on = run.tell("process.json"), None, False
    try:
        alive, runs_on = is_alive(run.path), is_running(run.path, quiet, seconds)
    except CheckpointError as error:
        tell(str(error))
    if alive is not True and (run.path / "final").exists():
        state = "finished"
    elif runs_on:
        state = "running"
        facts += [f"{seconds:.2g} s a step"] if seconds else []
        facts += [f"about {duration(seconds * (steps - last))} left"] if seconds and steps and steps > last else []
    else:
        state = "stopped"
        facts.append("its process has ended" if alive is False else f"no new line for {duration(quiet)}")
    return Status(name=run.name, state=state, facts=tuple(facts), problems=tuple(run.problems))


def tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    """(name, value, comment) of the few numbers that tell how a run goes."""
    rows, thinned, found = run.metrics(), run.thinned(), []
    reward = [value for _, value in curve(rows, "reward")]
    if reward:
        part = max(1, len(reward) // 10)
        first, last = sum(reward[:part]) / part, sum(reward[-part:]) / part
        found.append(("Reward", f"{number(first)} → {number(last)}", f"first and last {_steps(part)}"))
    for metric in ("acc@0.5", "accuracy", "mAP", "nms_ap"):
        for line in held_out_lines(metric)([thinned], [run.evaluations()]):
            points = line.runs[0]
            if points:
                (old_step, old), (step, new) = points[0], points[-1]
                told = f"{number(old)} → {number(new)}" if len(points) > 1 else number(new)
                comment = f"steps {old_step:.0f} and {step:.0f}" if len(points) > 1 else f"step {step:.0f}"
                found.append((f"{line.label} {metric_name(metric)}", told, comment))
    for name, label, comment in (
        ("parse/failed", "Unreadable answers", "last 20 steps"),
        ("frac_reward_zero_std", "Groups without a signal", "last 20 steps"),
        ("kl", "KL", "nats a token"),
    ):
        values = [value for _, value in curve(rows[-20:], name)]
        if values:
            mean = sum(values) / len(values)
            found.append((label, f"{mean:.2g}" if name == "kl" else f"{100 * mean:.0f} %", comment))
    return found[:6]


def warnings(run: RunFolder) -> list[tuple[int, str]]:
    """(step, sentence), the latest first."""
    return sentences(run.metrics())[::-1][:WARNINGS_SHOWN]


def _all_zero(lines: Sequence[Line]) -> bool:
    return not any(value for line in lines for points in line.runs for _, value in points)


def _method(recipe: Mapping[str, Any]) -> str:
    name = {"grpo": "GRPO", "sft": "supervised"}.get(str(recipe.get("method", "")), "")
    model = recipe.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    return f"{name} of {path}" if name and path else name


def _steps(n: int) -> str:
    return "step" if n == 1 else f"{n} steps"
