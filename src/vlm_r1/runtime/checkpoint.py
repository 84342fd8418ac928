"""Checkpoints: written aside and renamed, so one that has its final name is whole; the last k are kept.

`checkpoint-N/` is a plain Hugging Face model folder (it loads and serves as it is) plus `optimizer.pt` and
`state.json`, whose `files` lists every file with its size: a checkpoint that lost bytes is refused by name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlm_r1.config import PromptConfig
from vlm_r1.errors import CheckpointError
from vlm_r1.models.load import PROMPT_FILE
from vlm_r1.models.processor import save_processor

_NAME = re.compile(r"checkpoint-(\d+)$")


def save_model(folder: Path, model: Any, processor: Any, prompt: PromptConfig) -> None:
    """Write weights (safetensors), configuration, processor and prompt settings into an existing folder."""
    model.save_pretrained(folder)
    save_processor(processor, folder)
    (folder / PROMPT_FILE).write_text(prompt.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_folder(target: Path, fill: Any) -> None:
    """Make folder `target` by calling `fill(tmp)` on a folder beside it and renaming. Raises `CheckpointError`."""
    aside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        fill(aside)
        for file in sorted(aside.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if not _is_refusal_to_write(error):
            raise
        raise CheckpointError(
            f"{target}: could not be written ({_reason(error)}); earlier checkpoints are intact. "
            "Free some space and start the same command again: the run continues from the last one"
        ) from error


def _is_refusal_to_write(error: Exception) -> bool:
    """Whether an error says that the system refused to write: OSError, torch's RuntimeError, or one from Rust.

    safetensors has an exception class of its own and tokenizers raises bare `Exception`; both end in "(os error N)".
    """
    return isinstance(error, OSError | RuntimeError) or "(os error " in str(error)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def save_checkpoint(
    run_dir: Path,
    step: int,
    *,
    model: Any,
    processor: Any,
    prompt: PromptConfig,
    optimizer: Any,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write `checkpoint-<step>` and drop all but the last `keep`. `state` must be plain JSON data."""
    target = run_dir / f"checkpoint-{step}"

    def fill(folder: Path) -> None:
        save_model(folder, model, processor, prompt)
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
        content = {"step": step, "files": files, **state}
        (folder / "state.json").write_text(json.dumps(content), encoding="utf-8")

    write_folder(target, fill)
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [p for p in run_dir.glob("checkpoint-*") if _NAME.search(p.name)] if run_dir.is_dir() else []
    return sorted(found, key=lambda p: int(p.name.rsplit("-", 1)[1]))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint. Raises `CheckpointError` where a file is missing or shorter than when written."""
    remedy = f"delete {checkpoint} to continue from the one before it"
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}/state.json: cannot be read ({_reason(error)}); {remedy}") from None
    for name, size in state["files"].items():
        file = checkpoint / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(f"{file}: {what}; {remedy}")
    return dict(state)


def load_optimizer(checkpoint: Path, optimizer: Any) -> None:
    """Restore the optimiser's state."""
    try:
        optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint}/optimizer.pt: cannot be read ({_reason(error)}); "
            f"delete {checkpoint} to continue from the one before it"
        ) from error
