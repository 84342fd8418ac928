"""From the numbers to a page: a Markdown table and a plot, made from the JSON file alone."""

from __future__ import annotations

from pathlib import Path
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
    size = "x".join(map(str, setting["picture_size"]))
    lines = [
        "# One GRPO step beside TRL's",
        "",
        f"{setting['prompts']} prompts with a {size} picture ({setting['image_tokens']} image tokens, "
        f"{setting['prompt_tokens_each']} prompt tokens), G = {setting['group']}, {setting['answer_tokens']} answer "
        f"tokens, beta 0, AdamW, all {ours['parameters']:,} parameters trained, {ours['dtype']}"
        f"{', computing in bfloat16' if setting.get('precision') == 'bfloat16' else ''}, SDPA attention. "
        f"Model: {setting['model']}, Qwen2.5-VL architecture, random weights.",
        "",
        f"**TRL {result['versions'].get('trl', '?')} takes {result['ratio_vs_trl']:.1f} times as long.** "
        f"Median of {len(ours['steps'])} and {len(trl['steps'])} steps.",
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
        *_tried(trl),
        *_sweep(result.get("sweep", [])),
        *_growth(result.get("growth")),
        *_overhead(result.get("overhead")),
        *_facts(result),
    ]
    return "\n".join(lines) + "\n"


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _tried(trl: dict[str, Any]) -> list[str]:
    lines = ["## Settings of TRL that were tried", "", "The fastest is the one above.", ""]
    lines += ["| settings | step, s | note |", "|---|---|---|"]
    for row in trl["tried"]:
        text = ", ".join(f"{k} {v}" for k, v in row["settings"].items())
        lines.append(f"| {text} | {_s(row.get('step_s'))} | {row.get('error') or row.get('note', '')} |")
    return [*lines, ""]


def _sweep(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["## Other sizes", "", "![plot](grpo_step.png)", ""]
    lines += ["| image tokens | G | ours, s | TRL, s | ratio | arithmetic limit |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['ratio']:.1f}" if row.get("ratio") else row.get("error", "")
        lines.append(
            f"| {row['image_tokens']} | {row['group']} | {_s(row.get('ours_s'))} | {_s(row.get('trl_s'))} | {ratio} "
            f"| {row['step_limit']:.1f} |"
        )
    return [*lines, ""]


def _growth(growth: dict[str, Any] | None) -> list[str]:
    if not growth:
        return []
    text = (
        f"Four times the answers at 1,024 image tokens: time(G = 16) / time(G = 4) = **{growth['ratio']:.2f}** "
        f"({growth['g16_s']:.2f} s and {growth['g4_s']:.2f} s)."
    )
    return [text, ""]


def _overhead(overhead: dict[str, Any] | None) -> list[str]:
    if not overhead:
        return []
    if "error" in overhead:
        return [f"Overhead at the demo's size was not measured: {overhead['error']}", ""]
    row = sorted(overhead["steps"], key=lambda r: r["overhead_share"])[len(overhead["steps"]) // 2]
    parts = ", ".join(f"{name} {row[name]:.3f} s" for name in row if name not in ("step_s", "overhead_share"))
    return [
        f"At the demo's size ({overhead['prompts']} prompts, G = {overhead['group']}, 96x96 pictures) "
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
        "end-of-text token is banned), and the counted tokens, parameters, dtype, threads and optimiser are asserted "
        "to be equal. Every repetition is in `grpo_step.json`.",
        "",
        f"Machine: {machine}. Versions: {found}.",
    ]


def plot(result: dict[str, Any], file: Path) -> None:
    """Step time over G, one colour per picture size, ours solid and TRL dashed; the ratio beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    sizes = sorted({row["image_tokens"] for row in result["sweep"]})
    for number, tokens in enumerate(sizes):
        rows = [row for row in result["sweep"] if row["image_tokens"] == tokens and row.get("ratio")]
        groups, colour = [row["group"] for row in rows], f"C{number}"
        left.plot(groups, [row["ours_s"] for row in rows], "o-", color=colour, label=f"ours, {tokens} image tokens")
        left.plot(groups, [row["trl_s"] for row in rows], "s--", color=colour, label=f"TRL, {tokens} image tokens")
        right.plot(groups, [row["ratio"] for row in rows], "o-", color=colour, label=f"{tokens} image tokens")
        right.plot(groups, [row["step_limit"] for row in rows], ":", color=colour)
    for axis, title in ((left, "seconds a step"), (right, "TRL's time / ours (dotted: arithmetic alone)")):
        axis.set(xscale="log", xlabel="answers per prompt (G)", title=title)
        axis.set_xticks(sorted({row["group"] for row in result["sweep"]}))
        axis.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    left.set_yscale("log")
    figure.savefig(file, dpi=130)
    plt.close(figure)
