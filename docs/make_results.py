"""Writes docs/results/README.md: every number that the project claims, with command, commit, machine and date.

    python docs/make_results.py

The numbers and their origin come from the JSON files beside it. tests/test_docs.py holds the page to them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NOT_RECORDED = "not recorded"


def gain(before: float, after: float) -> str:
    return f"{before:.3f} to {after:.3f}"


def recipe(data: Any) -> str:
    return (
        f"{data['recipe']}, in-domain {data['metric']} of {len(data['runs'])} seeds on {data['questions']:.0f} "
        f"questions: {data['before']:.3f} before, {spread(data['after'])} after"
    )


def splits(data: Any) -> str:
    return ", ".join(
        f"{name} {found[metric]:.3f}"
        for name, found in data.items()
        for metric in ("mean_iou", "mAP")
        if metric in found
    )


def fewest(rows: Any) -> str:
    found = {(row["model"], row["method"]): row["gpus"] for row in rows if row["gpu_memory_gib"] == 80}
    models = dict.fromkeys(model for model, _ in found)
    return ", ".join(f"{model} {found[model, 'full'] or 'over 16'} or {found[model, 'LoRA']}" for model in models)


def spread(found: Any) -> str:
    return f"{found['mean']:.3f} ({found['min']:.3f} to {found['max']:.3f})"


def ratios(data: Any) -> str:
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in data["now_over_before"].items())


def fault(data: Any) -> str:
    two = data["two_servers"]
    return (
        f"{len(data['own_server']['kills'])} kills and hangs of a run's own server, one of two servers killed: "
        f"{two['groups_missing']} groups lost, {two['groups_double']} double, "
        f"{two['answers_of_other_versions']} completions of other versions"
    )


def learning(data: Any) -> str:
    return "in-domain mean IoU after training, three seeds: " + "; ".join(
        f"{engine} {spread(found['in_domain_after'])}, {found['seconds']:.2f} s a step"
        for engine, found in data["summary"].items()
    )


def sweep(data: Any) -> str:
    found = [cell["ratio"] for cell in data["sweep"] if cell.get("ratio")]
    return (
        f"step against TRL, {len(found)} cells of image tokens and group size: {min(found):.1f}x to {max(found):.1f}x"
    )


def own_data(data: Any) -> str:
    (mean,) = (row for row in data["rows"] if row["metric"] == "mAP")
    after_sft, after_rl = (cell["value"] for cell in mean["cells"][:2])
    return (
        f"detection on data of one's own, mAP on {mean['n']} images: {after_sft:.3f} after SFT, {after_rl:.3f} after RL"
    )


SAYS: dict[str, Callable[[Any], str]] = {
    "base": lambda d: f"the shipped model, mean IoU (mAP of detect and list): {splits(d)}",
    "base_stage1": lambda d: (
        f"the shipped model before the stage with loose boxes, mean IoU (mAP of detect and list): {splits(d)}"
    ),
    "before_after": lambda d: f"step time over that of commit {d['base']}: {ratios(d)}",
    "demo": lambda d: (
        f"gain of in-domain mean IoU over {d['headline']['seeds']} seeds: "
        f"{spread(d['headline']['in_domain_mean_iou_gain'])}"
    ),
    "demo_two_seeds": lambda d: f"two more seeds of the demo, later code: {len(d['runs'])} runs",
    "families": lambda d: (
        f"largest difference of a gradient from the plain forward over {len(d['families'])} families: "
        f"{max(f.get('gradient_difference') or 0 for f in d['families'].values()):.1e}"
    ),
    "frozen_update": lambda d: f"update with a frozen tower, cached: {d['ratio_cached']:.1f}x as fast as without",
    "generation_queue": lambda d: (
        f"queue model against real processes: largest error {d['largest_error']['slowed']:.0%} with the slowdown of "
        f"two processes on two cores counted, {d['largest_error']['alone']:.0%} without"
    ),
    "grpo_one_file": lambda d: (
        f"the example in one file: mean gain of IoU {d['mean_gain']:.3f}, smallest {d['smallest_gain']:.3f}"
    ),
    "grpo_step": lambda d: (
        f"GRPO step against TRL: {d['ratio_vs_trl']:.1f}x (rollout {d['ratio_rollout']:.1f}x, "
        f"update {d['ratio_update']:.1f}x)"
    ),
    "grpo_sweep": sweep,
    "overhead": lambda d: f"share of a step outside of model and rewards: {d['overhead_share']:.1%}",
    "own_data": own_data,
    "plan": lambda d: f"planned over measured peak memory: {d['lowest_ratio']:.2f} to {d['highest_ratio']:.2f}",
    "plan_recipes": lambda d: f"memory of {len(d['rows'])} recipes on 80 GB GPUs, computed, not measured",
    "plan_table": lambda d: f"fewest GPUs of 80 GB, full or LoRA: {fewest(d['rows'])}; computed, not measured",
    "rewards": lambda d: (
        f"{d['headline']['rec_answers_per_s']:,} REC and {d['headline']['ovd_answers_per_s']:,} OVD answers a second, "
        f"{d['headline']['ovd_ratio_vs_pycocotools']:.0f}x pycocotools"
    ),
    "scaling": lambda d: (
        f"two processes against one: step {d['speedup_step']:.2f}x (at most {d['ceiling_step']:.2f}x here), "
        f"evaluation {d['speedup_evaluation']:.2f}x"
    ),
    "scenes_custom_reward": recipe,
    "scenes_lora": recipe,
    "scenes_ovd": recipe,
    "trl_loss": lambda d: (
        f"loss and gradient against TRL's: largest differences {d['largest_loss_error']:.1e} and "
        f"{d['largest_gradient_error']:.1e}"
    ),
    "vllm_faults": fault,
    "vllm_learning": learning,
    "vllm_parity": lambda d: (
        f"log-probs of vLLM and ours over {d['tokens']:,} tokens: mean difference {d['mean']:.1e}, maximum "
        f"{d['maximum']:.1e}; {d['same']} of {d['greedy']} greedy answers equal"
    ),
    "turns": lambda d: (
        "update of answers with images in them beside the padded one: "
        + ", ".join(f"{c['ratio_padded']:.1f}x ({c['case']}, tower {c['tower']})" for c in d["cells"])
    ),
}
"""File -> the numbers that it stands for, in words."""


def verdicts(data: Any) -> str:
    """What a study of the lab came to."""
    found = [claim["verdict"] for claim in data["claims"]]
    return f"{data['title']}: " + ", ".join(f"{found.count(v)} {v}" for v in dict.fromkeys(found))


def values(data: Any, key: str) -> Iterator[Any]:
    """All values of a key, at any depth."""
    if isinstance(data, dict):
        if data.get(key):
            yield data[key]
        for inner in data.values():
            yield from values(inner, key)
    elif isinstance(data, list):
        for inner in data:
            yield from values(inner, key)


def joined(data: Any, *keys: str) -> str:
    """The different values of these keys as text."""
    found: dict[str, None] = {}
    for key in keys:
        for value in values(data, key):
            found |= dict.fromkeys(str(v) for v in (value if isinstance(value, list) else [value]))
    return ", ".join(found) or NOT_RECORDED


def machine(data: Any) -> str:
    """Processor and cores, as far as a file has them."""
    for found in values(data, "machine"):
        if isinstance(found, dict):
            name = found.get("cpu") or found.get("processor") or found.get("system")
            cores = found.get("cores") or found.get("cpus")
            return f"{name}, {cores} cores" if cores else str(name)
    return NOT_RECORDED


def row(file: Path) -> str:
    data = json.loads(file.read_text(encoding="utf-8"))
    says = verdicts(data) if file.parent.name == "lab" else SAYS[file.stem](data)
    command = data.get("command") if isinstance(data, dict) else None
    cells = [
        f"[{file.relative_to(RESULTS)}]({file.relative_to(RESULTS)})",
        says,
        f"`{command}`" if command else NOT_RECORDED,
        joined(data, "commit", "commits"),
        machine(data),
        joined(data, "date"),
    ]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def render() -> str:
    """The page. Raises `KeyError` for a file of results without a line in `SAYS`."""
    files = [*sorted(RESULTS.glob("*.json")), *sorted((RESULTS / "lab").glob("*.json"))]
    head = [
        "# Every number and where it comes from",
        "",
        "Made by `python docs/make_results.py` from the files of this folder. A commit with `-dirty` or `+changes` had",
        "changes that were not committed; what a file does not say is not recorded. No number comes from a GPU.",
        "",
        "| file | what it says | command | commit | machine | date |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *map(row, files)]) + "\n"


if __name__ == "__main__":
    (RESULTS / "README.md").write_text(render(), encoding="utf-8")
