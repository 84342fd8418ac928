"""From the numbers of `grpo_sweep.py` to a table and a plot, made from the JSON file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def page(result: dict[str, Any]) -> str:
    """The sizes as a Markdown table, and where and how they were measured."""
    rows = result["sweep"]
    lines = ["# One GRPO step over group and image sizes", "", "![plot](grpo_sweep.png)", ""]
    lines += [
        "4 prompts, 64 answer tokens, the tiny model of [grpo_step.md](grpo_step.md), TRL at its fastest settings "
    ]
    lines[-1] += "there but torch_compile. Medians; steps: how many of each side were measured. "
    lines[-1] += "Limit: what arithmetic alone predicts."
    lines += ["", "| image tokens | G | ours, s | TRL, s | ratio | limit | steps of ours, TRL | commit |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in rows:
        steps = f"{len(row['steps']['ours'])}, {len(row['steps']['trl'])}"
        lines.append(
            f"| {row['image_tokens']:,} | {row['group']} | {row['ours_s']:.2f} | {row['trl_s']:.2f} "
            f"| **{row['ratio']:.1f}** | {row['step_limit']:.1f} | {steps} | {row['commit']} |"
        )
    times = {row["group"]: row["ours_s"] for row in rows if row["image_tokens"] == 1024}
    if {4, 16} <= set(times):
        growth = f"time(G = 16) / time(G = 4) = **{times[16] / times[4]:.2f}**"
        lines += ["", f"Ours at 1,024 image tokens: {growth}."]
    return "\n".join([*lines, "", *_facts(rows), ""])


def _facts(rows: list[dict[str, Any]]) -> list[str]:
    """Where and how: what all rows share, and what differs between calls."""

    def all_of(values: list[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    def named(key: str) -> str:
        return all_of([", ".join(f"{k} {v}" for k, v in row[key].items()) for row in rows])

    calls = all_of([f"`{row['command']}` at commit {row['commit']} on {row['date']}" for row in rows])
    settings = [", ".join(f"{k} {v}" for k, v in row["trl_settings"].items() if k != "micro_batch") for row in rows]
    return [
        "## How",
        "",
        f"{calls}. Each size is ours, TRL, ours, each alone in a process of its own, whose first step is dropped. "
        "Every step is in `grpo_sweep.json`.",
        "",
        f"TRL with {all_of(settings)}, and a micro-batch of as many patches as was fastest at 256 image tokens.",
        "",
        f"Machine: {named('machine')}. Versions: {named('versions')}.",
    ]


def plot(result: dict[str, Any], file: Path) -> None:
    """Step time over G, one colour per image size, ours solid and TRL dashed; the ratio beside it."""
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
