"""The page of `gpu.py`, made from its JSON file alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from _arithmetic import phase_flops
from _setting import Setting

from vlm_r1.runtime.throughput import peak_flops

Row = dict[str, Any]


def peak_of(machine: Row) -> float | None:
    """The peak FLOP/s of a machine's GPU in bfloat16; None for a CPU or a GPU that is not known."""
    return peak_flops(machine.get("gpu", ""), torch.bfloat16)


def numbers(cell: Row) -> dict[str, float | None]:
    """Medians of a cell's repetitions: seconds of the phases it has, tokens a second, MFU, and peak memory in GiB.

    `mfu_shared` counts what sharing the prompt needs, `mfu_padded` what a padded batch would have computed meanwhile;
    both are the update's share of the peak of the GPU. `step_mfu_shared` is that of the whole step.
    """
    setting, steps = Setting(**cell["setting"]), cell["steps"]
    found: dict[str, float | None] = {
        name: statistics.median(step[name] for step in steps) for name in steps[0] if name.endswith("_s")
    }
    answers = setting.prompts * setting.group * setting.answer_tokens
    prompt = steps[0]["prompt_tokens"] / setting.prompts if "prompt_tokens" in steps[0] else cell["prompt_tokens"]
    flops, peak = phase_flops(setting, round(prompt)), peak_of(cell["machine"])
    if rollout := found.get("rollout_s"):
        found["answer_tokens_per_s"] = answers / rollout
    if update := found.get("update_s"):
        found["trained_tokens_per_s"] = (setting.prompts * prompt + answers) / update
        for way in ("shared", "padded"):
            found[f"mfu_{way}"] = flops[f"update_{way}"] / update / peak if peak else None
    if step := found.get("step_s"):
        total = flops["rollout_shared"] + flops["update_shared"]
        found["step_mfu_shared"] = total / step / peak if peak else None
    mib = cell.get("peak_cuda_mib", cell["peak_rss_mib"])
    return found | {"peak_gib": mib / 1024}


def markdown(result: Row) -> str:
    """The page of a result."""
    title = "# One GPU: 3B and 7B" if not result["tiny"] else "# benchmarks/gpu.py --tiny: it runs; nothing is measured"
    lines = [title, "", "Median of the repetitions; every one of them, and every setting, is in `gpu.json`.", ""]
    parts: dict[str, Callable[[dict[str, Row]], list[str]]] = {
        "ours": _ours,
        "trl": _trl,
        "flash-pref": _flash_pref,
        "decode": _decode,
    }
    for stage, part in parts.items():
        cells = {name: cell for name, cell in result["cells"].items() if cell["stage"] == stage}
        if cells:
            same = {n: c for n, c in result["cells"].items() if c["stage"] in (stage, "ours")}
            lines += [*part(same if stage == "trl" else cells), "", *_failed(cells)]
    return "\n".join([*lines, *_facts(result["cells"])]) + "\n"


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    body = ["| " + " | ".join("-" if v is None else str(v) for v in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]


def _size(cell: Row) -> list[Any]:
    s = cell["setting"]
    return [
        s["model"],
        s["image_tokens"],
        s["answer_tokens"],
        {"full": "trained", "lora": "LoRA"}.get(s["vision"], "frozen"),
    ]


def _f(value: float | None, digits: int = 2) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def _fastest(cells: dict[str, Row], stage: str) -> dict[tuple[Any, ...], tuple[Row, dict[str, Any]]]:
    """Size -> the cell of a stage with the shortest step, and its numbers."""
    best: dict[tuple[Any, ...], tuple[Row, dict[str, Any]]] = {}
    for cell in (cell for cell in cells.values() if cell["stage"] == stage and "steps" in cell):
        key, found = tuple(_size(cell)), numbers(cell)
        if key not in best or found["step_s"] < best[key][1]["step_s"]:
            best[key] = cell, found
    return best


SECONDS = ("step_s", "rollout_s", "update_s")


def _ours(cells: dict[str, Row]) -> list[str]:
    rows = []
    for key, (cell, n) in _fastest(cells, "ours").items():
        rows.append(
            [
                *key,
                *(_f(n[name]) for name in SECONDS),
                *(_f(n[name], 0) for name in ("answer_tokens_per_s", "trained_tokens_per_s")),
                *(_percent(n[name]) for name in ("mfu_shared", "mfu_padded", "step_mfu_shared")),
                _f(n["peak_gib"], 1),
                "on" if cell["settings"]["gradient_checkpointing"] else "off",
            ]
        )
    head = ["model", "image tokens", "answer tokens", "tower", "step, s", "rollout, s", "update, s"]
    head += ["answer tokens/s in the rollout", "tokens/s in the update", "update MFU", "padded", "step MFU"]
    head += ["peak memory, GiB", "checkpointing"]
    text = (
        "MFU counts every prompt once and nothing that is recomputed, over the peak stated below; padded: every prompt "
    )
    text += "and image once for each of its answers. Of a step without and with checkpointing the faster one is shown."
    return ["## A step", "", *_table(head, rows), "", text]


def _trl(cells: dict[str, Row]) -> list[str]:
    ours, rows = _fastest(cells, "ours"), []
    for key, (cell, n) in _fastest(cells, "trl").items():
        mine = ours[key][1] if key in ours else {}
        ratios = [n[name] / mine[name] if mine else None for name in SECONDS]
        settings = ", ".join(f"{k} {v}" for k, v in cell["settings"].items() if v is not False)
        rows.append(
            [
                *key,
                *(_f(n[name]) for name in SECONDS),
                *(_f(r, 1) for r in ratios),
                _percent(n["mfu_padded"]),
                _f(n["peak_gib"], 1),
                settings,
            ]
        )
    head = ["model", "image tokens", "answer tokens", "tower", "step, s", "rollout, s", "update, s"]
    head += [
        "step / ours",
        "rollout / ours",
        "update / ours",
        "update MFU (padded, as it computes)",
        "peak memory, GiB",
    ]
    head += ["its fastest settings"]
    return ["## TRL on the same, at its best", "", *_table(head, rows)]


def _flash_pref(cells: dict[str, Row]) -> list[str]:
    rows = []
    for name, cell in cells.items():
        if "steps" in cell:
            n = numbers(cell)
            rows.append(
                [name.rsplit("/", 1)[1], _f(n["update_s"], 3), _f(n["peak_gib"], 1), cell.get("attention", "ours")]
            )
    text = (
        "Forward and backward of one group, weights in compute precision, checkpointing on. padded: its model as it is."
    )
    return [
        "## flash-preference on its own ground",
        "",
        text,
        "",
        *_table(["", "s", "peak memory, GiB", "attention"], rows),
    ]


def _decode(cells: dict[str, Row]) -> list[str]:
    sides: dict[str, dict[str, str | None]] = {}
    for name, cell in cells.items():
        if "steps" in cell:
            where, side = name.removeprefix("decode/").rsplit("/", 1)
            sides.setdefault(where, {})[side] = _f(numbers(cell)["answer_tokens_per_s"], 0)
    columns = list(dict.fromkeys(side for row in sides.values() for side in row))
    rows = [[*where.split("/"), *(row.get(side) for side in columns)] for where, row in sides.items()]
    head = ["model", "image tokens", "answer tokens", "batch", *columns]
    return ["## Decoding, answer tokens a second", "", *_table(head, rows), "", "The prompts' own pass is part of it."]


def _failed(cells: dict[str, Row]) -> list[str]:
    failed = [f"- `{name}`: {cell['error']}" for name, cell in cells.items() if "error" in cell]
    return ["Not measured:", "", *failed, ""] if failed else []


def _facts(cells: dict[str, Row]) -> list[str]:
    """Where and how: what all cells share, and what differs between calls."""
    measured = [cell for cell in cells.values() if "steps" in cell]
    if not measured:
        return []

    def all_of(values: list[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    machines = all_of([", ".join(f"{k} {v}" for k, v in cell["machine"].items()) for cell in measured])
    stacks = all_of([", ".join(f"{k} {v}" for k, v in cell["versions"].items()) for cell in measured])
    peaks = {cell["machine"].get("gpu", "a CPU"): peak_of(cell["machine"]) for cell in measured}
    stated = "; ".join(f"{name}: {f'{peak / 1e12:.0f}' if peak else 'unknown'}" for name, peak in peaks.items())
    return [
        "## How",
        "",
        f"Commits {all_of([cell['commit'] for cell in measured])}, {all_of([cell['date'] for cell in measured])}.",
        f"Commands: {all_of(['`' + cell['command'] + '`' for cell in measured])}.",
        "Each cell ran alone in a process of its own; the first step is dropped; every answer has all its tokens.",
        "",
        f"Machine: {machines}. Peak TFLOP/s (dense bfloat16): {stated}. Versions: {stacks}.",
    ]
