"""Qwen2.5-VL-3B and 7B (published configurations, random weights) on one GPU, beside TRL, flash-preference, generate.

    python benchmarks/gpu.py --out docs/results                    # every stage; run it again until nothing is left
    python benchmarks/gpu.py --stage ours --out docs/results       # one stage: ours, trl, flash-pref or decode
    python benchmarks/gpu.py --list                                # the cells of all stages, in order
    python benchmarks/gpu.py --only trl/3b/1280 --out docs/results # the cells whose name holds this
    python benchmarks/gpu.py --device cpu --tiny                   # does it run? a minute or two, no GPU

A call ends within --budget-s (default 540). Each cell runs in a process of its own, and what it gave is added to
OUT/gpu.json at once; finished cells are skipped by the next call, failed ones too unless --retry is given. gpu.md is
made from it. Without --out the page is printed and nothing is kept.

ours        a step of `vlm-r1 train`: seconds by phase, tokens a second, MFU and peak memory, at 400 and 1,280 image
            tokens, 256 and 1,024 answer tokens, G = 8, tower trained and frozen
trl         TRL 1.16 on the same: patch embedding fused, bfloat16; liger, FlashAttention-2 and vLLM (colocated) where
            they are installed
flash-pref  forward and backward on G completions by flash-preference, by its model padded, and by ours
decode      16, 64 and 256 answers by the native engine and by transformers.generate (dynamic and static cache)

3B is trained in full: by `vlm-r1 plan` it takes 64 GiB at 1,280 image and 256 answer tokens with checkpointing. 7B in
full would take 136 GiB, more than the 127 that tensors can have of a 141-GiB GPU: it is trained with LoRA (rank 16)
over frozen bfloat16 weights on both sides (34 GiB), in the tower as well where that is trained. Every step is tried
without and with gradient checkpointing on both sides, and the fastest that fits counts.

On a machine without network that has torch, transformers, accelerate and peft, carry the rest as wheels:

    pip download --no-deps --only-binary=:all: -d wheels pydantic pydantic-core annotated-types typing-inspection \\
        pycocotools json-repair rapidfuzz trl==1.16.0 datasets dill multiprocess pytz
    pip install --no-index --no-deps --target SITE wheels/*.whl            # there, and then PYTHONPATH=src:SITE

flash-pref needs an older transformers, in a folder of its own that is given as --flash-pref FLASH:

    pip install --no-deps --target FLASH flash-pref==0.1.1 transformers==4.51.3 'tokenizers<0.22' \\
        'huggingface-hub<1.0' requests urllib3 certifi idna charset-normalizer
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _gpu_cells import STAGES, Cell, cells_of
from _gpu_page import markdown
from _measure import commit, run_process

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure what is not measured yet, as far as the budget goes; write after every cell."""
    arguments = parse_arguments()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not (arguments.list or has_gpu()):
        raise SystemExit("no CUDA device is there: try --device cpu --tiny")
    if arguments.tiny and arguments.out and arguments.out.resolve() == ROOT / "docs" / "results":
        raise SystemExit("--tiny measures nothing: give --out another folder than docs/results")
    result = read(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cells = [
            cell
            for stage in arguments.stage or STAGES
            for cell in cells_of(
                stage,
                str(folder),
                tiny=arguments.tiny,
                prompts=arguments.prompts,
                repetitions=arguments.repetitions,
            )
            if arguments.only in cell.name
        ]
        if arguments.list:
            print("\n".join(cell.name for cell in cells))
            return
        left = work_through(cells, result, folder, arguments)
    if arguments.out is None:
        print(markdown(result))
    print(f"{left} cells are left: run the same command again" if left else "nothing is left", flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, help="default: all, in this order")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells whose name holds this text")
    parser.add_argument("--list", action="store_true", help="name the cells and do nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and two steps: only to see it run")
    parser.add_argument("--prompts", type=int, default=8, help="prompts in a step (ours, trl)")
    parser.add_argument("--repetitions", type=int, default=3, help="measured steps of a cell, after one of warm-up")
    parser.add_argument("--budget-s", type=float, default=540.0, help="seconds after which a call has ended")
    parser.add_argument("--retry", action="store_true", help="measure failed cells again")
    parser.add_argument("--work", type=Path, help="folder for models and images; default: one that is deleted")
    parser.add_argument("--flash-pref", type=Path, metavar="FOLDER", help="packages of the flash-pref stage")
    parser.add_argument("--out", type=Path, help="folder of gpu.json and gpu.md; default: nothing is kept")
    return parser.parse_args()


def has_gpu() -> bool:
    """Whether torch sees a GPU; asking takes none of its memory."""
    import torch

    return torch.cuda.is_available()


def read(arguments: argparse.Namespace) -> dict[str, Any]:
    """The result so far. Ends the program where it is one of the other mode."""
    file = arguments.out and arguments.out / "gpu.json"
    if not file or not file.is_file():
        return {"benchmark": "gpu", "tiny": arguments.tiny, "cells": {}}
    result = json.loads(file.read_text(encoding="utf-8"))
    if result["tiny"] != arguments.tiny:
        raise SystemExit(f"{file}: is a result {'with' if result['tiny'] else 'without'} --tiny")
    return result


def work_through(cells: list[Cell], result: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> int:
    """Measure cells one after the other; returns how many the budget left undone.

    No cell is started that would not end in time if it took as long as the longest one so far. One that the budget cut
    is an error only if it had most of the budget to itself.
    """
    started, longest = time.monotonic(), 0.0
    todo = [cell for cell in cells if not finished(result["cells"].get(cell.name), arguments.retry)]
    for number, cell in enumerate(todo):
        room = arguments.budget_s - (time.monotonic() - started)
        if number and room < longest:
            return len(todo) - number
        found = measure(cell, folder, room, arguments)
        longest = max(longest, found["wall_s"])
        print(f"{cell.name}: {found.get('error') or 'measured'} ({found['wall_s']:.0f} s)", flush=True)
        if found.get("cut") and room < 0.9 * arguments.budget_s:
            return len(todo) - number
        result["cells"][cell.name] = found
        if arguments.out:
            write(result, arguments.out)
    return 0


def finished(found: dict[str, Any] | None, retry: bool) -> bool:
    """Whether a cell has a result: steps, or an error that is not to be tried again."""
    return found is not None and ("steps" in found or not (retry or found.get("missing")))


def measure(cell: Cell, folder: Path, room: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """One cell in a process of its own, with what identifies it."""
    facts = {
        "stage": cell.stage,
        "setting": asdict(cell.setting.changed(folder="")),
        "job": cell.job,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command(sys.argv[1:]),
    }
    packages = arguments.flash_pref if cell.stage == "flash-pref" and cell.script == "_flash_pref.py" else None
    missing = [name for name in cell.needs if not installed(name, packages)]
    if missing:
        return facts | {"error": f"{missing[0]} is not installed", "missing": missing, "wall_s": 0.0}
    started = time.monotonic()
    cell.setting.write(folder / "job.json", **cell.job)
    found = run_process(cell.script, folder / "job.json", folder / "result.json", room, packages)
    wall_s = time.monotonic() - started
    cut = {"cut": True} if "error" in found and wall_s >= room else {}
    return facts | checked(cell, found) | cut | {"wall_s": wall_s}


def command(arguments: list[str]) -> str:
    """The command as another person would type it: without the folders of this machine."""
    folders = ("--out", "--work", "--flash-pref")
    kept = [a for a, before in zip(arguments, ["", *arguments], strict=False) if not {a, before} & set(folders)]
    return " ".join(["python benchmarks/gpu.py", *kept])


def installed(name: str, packages: Path | None) -> bool:
    """Whether a package can be imported, from the folder or else from here."""
    return bool(packages and (packages / name).is_dir()) or importlib.util.find_spec(name) is not None


def checked(cell: Cell, found: dict[str, Any]) -> dict[str, Any]:
    """The result, or an error where a step did not have all tokens of all answers."""
    full = cell.setting.prompts * cell.setting.group * cell.setting.answer_tokens
    short = [step["answer_tokens"] for step in found.get("steps", []) if step["answer_tokens"] != full]
    return {"error": f"answers are cut: {short[0]} of {full} tokens"} if short else found


def write(result: dict[str, Any], out: Path) -> None:
    """The JSON file, and the page made from it."""
    out.mkdir(parents=True, exist_ok=True)
    aside = out / ".gpu.json.tmp"
    aside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, out / "gpu.json")
    (out / "gpu.md").write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
