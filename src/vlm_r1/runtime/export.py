"""A run's model as a folder of its own: the adapter as it is, or merged into its base as a plain model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig

from vlm_r1.config import ModelConfig
from vlm_r1.config_file import load_config
from vlm_r1.distributed.checkpoints import read_weights_of
from vlm_r1.distributed.whole import list_checkpoints, read_state
from vlm_r1.errors import UserError
from vlm_r1.models.adapters import base_of_adapter, refuse_pickle
from vlm_r1.models.load import load_policy, prompt_of_model
from vlm_r1.models.processor import load_processor
from vlm_r1.runtime.model_folder import save_model, write_folder
from vlm_r1.runtime.session import choose_trained


def export(source: Path, out: Path, *, merge: bool = False, dtype: str | None = None) -> Path:
    """Write the model of a run folder, checkpoint or adapter folder to `out`; returns the folder it came from.

    With `merge` an adapter becomes part of its base's weights, in `dtype` (default: the base's own). Raises `UserError`
    where there is no model, nothing to merge, or `out` holds files.
    """
    folder = _model_folder(source)
    checkpoint = (folder / "state.json").is_file()
    base = base_of_adapter(str(folder)) if merge and not checkpoint else None
    if merge and base is None and not checkpoint:
        raise UserError(f"{folder}: is a whole model, there is no adapter to merge; leave --merge out")
    if dtype is not None and not merge:
        raise UserError("--dtype: a copy keeps its weights as they are; use it with --merge")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already; name another folder, or remove it")

    if checkpoint:
        return _export_checkpoint(folder, out, merge, dtype)

    def fill(target: Path) -> None:
        if base is not None:
            _merge(folder, base, target, dtype)
        else:
            shutil.copytree(folder, target, dirs_exist_ok=True)

    write_folder(out, fill)
    return folder


def _model_folder(source: Path) -> Path:
    """The folder itself, or the final model of a run, or its last checkpoint."""
    for folder in (source, source / "final", *reversed(list_checkpoints(source))):
        if any((folder / name).is_file() for name in ("config.json", "adapter_config.json", "state.json")):
            return folder
    raise UserError(
        f"{source}: holds no model; name a run folder with final/ or a checkpoint, an adapter folder or a model folder"
    )


def _export_checkpoint(checkpoint: Path, out: Path, merge: bool, dtype: str | None) -> Path:
    """The model of a distributed checkpoint: that of the run's recipe with the weights that the checkpoint holds."""
    read_state(checkpoint)
    recipe = load_config(checkpoint.parent / "config.yaml")
    loaded = load_policy(recipe.model, recipe.prompt, seed=recipe.run.seed, dtype=torch.float32)
    choose_trained(loaded.family, recipe)
    read_weights_of(checkpoint, loaded.policy)
    if merge and not getattr(loaded.policy.model, "peft_config", None):
        raise UserError(f"{checkpoint}: is a whole model, there is no adapter to merge; leave --merge out")
    if not merge:
        write_folder(out, lambda folder: save_model(folder, loaded.policy.model, loaded.processor, recipe.prompt))
        return checkpoint
    with tempfile.TemporaryDirectory() as aside:
        save_model(Path(aside), loaded.policy.model, loaded.processor, recipe.prompt)
        export(Path(aside), out, merge=True, dtype=dtype)
    return checkpoint


def _merge(folder: Path, base: str, target: Path, dtype: str | None) -> None:
    """Weights are merged in float32 and rounded once."""
    import peft

    refuse_pickle(str(folder))
    prompt = prompt_of_model(str(folder))
    model = load_policy(ModelConfig(path=base), prompt).policy.model
    merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload(safe_merge=True)
    own = getattr(torch, dtype) if dtype else AutoConfig.from_pretrained(base, trust_remote_code=False).dtype
    merged.to(own or torch.float32)
    processor = load_processor(folder if (folder / "processor_config.json").is_file() else base)
    save_model(target, merged, processor, prompt)
