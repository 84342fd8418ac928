"""From the numbers of `grpo_step.py` to a page, made from the JSON file alone."""

from __future__ import annotations

from typing import Any

PHASES = ("data_s", "rollout_s", "reward_s", "prepare_s", "update_s", "step_s", "cpu_s")
TITLES = {
    "data_s": "fetch data",
    "rollout_s": "rollout",
    "reward_s": "reward",
    "prepare_s": "prepare batch",
    "update_s": "update",
    "step_s": "**step**",
    "cpu_s": "CPU time of the process",
}


def markdown(result: dict[str, Any]) -> str:
    """The page of a result."""
    setting, ours, trl = result["setting"], result["ours"], result["trl"]
    size = "x".join(map(str, setting["image_size"]))
    lines = [
        "# One GRPO step beside TRL's",
        "",
        f"{setting['prompts']} prompts with a {size} image ({setting['image_tokens']} image tokens, "
        f"{setting['prompt_tokens_each']} prompt tokens), G = {setting['group']}, {setting['answer_tokens']} answer "
        f"tokens, beta 0, AdamW, all {ours['parameters']:,} parameters trained, {ours['dtype']}"
        f"{', computing in bfloat16' if setting.get('precision') == 'bfloat16' else ''}, SDPA attention. "
        f"Model: {setting['model']}, Qwen2.5-VL architecture, random weights.",
        "",
        f"**TRL {result['versions'].get('trl', '?')} takes {result['ratio_vs_trl']:.1f} times as long.** "
        f"Medians of {_count(len(ours['rounds']), 'round')}, each that of "
        f"{_count(len(ours['steps']) // len(ours['rounds']), 'step')}.",
        "",
        "| seconds | ours | TRL | ratio |",
        "|---|---|---|---|",
    ]
    for phase in PHASES:
        a, b = ours["median"].get(phase), trl["median"].get(phase)
        ratio = f"{b / a:.1f}" if a and b and phase in ("rollout_s", "update_s", "step_s", "cpu_s") else ""
        lines.append(f"| {TITLES[phase]} | {_s(a)} | {_s(b)} | {ratio} |")
    for name, title in (("peak_rss_mib", "peak memory, MiB"), ("peak_cuda_mib", "peak GPU memory, MiB")):
        if name in ours and name in trl:
            lines.append(f"| {title} | {ours[name]:.0f} | {trl[name]:.0f} | {trl[name] / ours[name]:.1f} |")
    limit = result["arithmetic"]
    lines += [
        "",
        f"By counting alone: the update's forward pass is {limit['forward_gflop_padded']:.1f} GFLOP padded and "
        f"{limit['forward_gflop_shared']:.1f} shared (**{limit['forward_limit']:.1f} times less**), the whole step "
        f"{limit['step_gflop_padded']:.0f} and {limit['step_gflop_shared']:.0f} "
        f"(**{limit['step_limit']:.1f} times less**). What exceeds that is overhead avoided, not arithmetic.",
        "",
        *_predicted(result["predicted"]),
        *_rounds(result),
        *_tried(trl),
        *_overhead(result.get("overhead")),
        *_facts(result),
    ]
    return "\n".join(lines) + "\n"


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _predicted(rows: list[dict[str, Any]]) -> list[str]:
    """The answer to those who have a larger model."""
    lines = ["## What to expect at real size", ""]
    lines += [
        "Counted, not measured: how many times less a step computes with each prompt there once and not G = 8 times. "
        "What the ratio above has beyond the arithmetic of its own size is overhead avoided in small layers; in models "
        "of real size arithmetic takes the time.",
        "",
    ]
    lines += ["| Qwen2.5-VL | image tokens | answer tokens | times less |", "|---|---|---|---|"]
    for row in rows:
        size = f"{row['model'].upper()} | {row['image_tokens']:,} | {row['answer_tokens']:,}"
        lines.append(f"| {size} | {row['step_limit']:.1f} |")
    return [*lines, ""]


def _rounds(result: dict[str, Any]) -> list[str]:
    """How far the rounds lie apart."""
    ratios = result["ratio_of_rounds"]
    lines = ["## Rounds", "", f"The ratio goes from {min(ratios):.2f} to {max(ratios):.2f}.", ""]
    lines += ["| round | ours, s | TRL, s | ratio |", "|---|---|---|---|"]
    rounds = zip(result["ours"]["rounds"], result["trl"]["rounds"], ratios, strict=True)
    for number, (a, b, ratio) in enumerate(rounds, 1):
        lines.append(f"| {number} | {_s(a['step_s'])} | {_s(b['step_s'])} | {ratio:.2f} |")
    return [*lines, ""]


def _tried(trl: dict[str, Any]) -> list[str]:
    lines = ["## Settings of TRL that were tried", "", "The fastest is the one above.", ""]
    lines += ["| settings | step, s | note |", "|---|---|---|"]
    for row in trl["tried"]:
        text = ", ".join(f"{k} {v}" for k, v in row["settings"].items())
        lines.append(f"| {text} | {_s(row.get('step_s'))} | {row.get('error') or row.get('note', '')} |")
    return [*lines, ""]


def _overhead(overhead: dict[str, Any] | None) -> list[str]:
    if not overhead:
        return []
    if "error" in overhead:
        return [f"Overhead at the demo's size was not measured: {overhead['error']}", ""]
    row = sorted(overhead["steps"], key=lambda r: r["overhead_share"])[len(overhead["steps"]) // 2]
    parts = ", ".join(f"{name} {row[name]:.3f} s" for name in row if name not in ("step_s", "overhead_share"))
    return [
        f"At the demo's size ({overhead['prompts']} prompts, G = {overhead['group']}, 96x96 images) "
        f"**{overhead['overhead_share']:.1%}** of a step is outside model forward, backward and optimiser "
        f"(step {row['step_s']:.2f} s: {parts}).",
        "",
    ]


def _facts(result: dict[str, Any]) -> list[str]:
    machine = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    found = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    return [
        "## How",
        "",
        f"`{result['command']}` at commit {result['commit']} on {result['date']}. Each side runs alone in a process of "
        "its own, in turn; the first steps of each are dropped. Both sides sample every answer to its full length (the "
        "end-of-text token is suppressed), and counted tokens, parameters, dtype, threads and optimiser are asserted "
        "to be equal. Every repetition is in `grpo_step.json`.",
        "",
        f"Machine: {machine}. Versions: {found}.",
    ]
