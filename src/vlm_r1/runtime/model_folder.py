"""Plain model folders: what `final/` is, and what every other program loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm_r1.config import PromptConfig
from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.distributed.sharding import full_tensors, is_sharded
from vlm_r1.errors import CheckpointError, writing_remedy
from vlm_r1.files import replacing
from vlm_r1.models.load import PROMPT_FILE, LoadedPolicy
from vlm_r1.models.processor import save_processor


def save_model(
    folder: Path, model: Any, processor: Any, prompt: PromptConfig, weights: dict[str, Tensor] | None = None
) -> None:
    """Write weights (safetensors), configuration, processor and prompt settings into an existing folder."""
    model.save_pretrained(folder, state_dict=weights)
    config = folder / "config.json"
    if weights and config.is_file():  # transformers writes the type of the shards, which are float32
        content = json.loads(config.read_text(encoding="utf-8"))
        content["dtype"] = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_processor(processor, folder)
    (folder / PROMPT_FILE).write_text(prompt.model_dump_json(indent=2) + "\n", encoding="utf-8")


def save_policy(target: Path, loaded: LoadedPolicy, prompt: PromptConfig, world: World = ALONE) -> None:
    """Write the model folder of a policy; every process calls it, the main one writes. Raises `CheckpointError`.

    Sharded weights come together one by one, in CPU memory of the main process and in compute precision.
    """
    policy, failed = loaded.policy, None
    weights: dict[str, Tensor] | None = None
    if is_sharded(policy):
        adapted = bool(getattr(policy.model, "peft_config", None))
        names = [n for n, _ in policy.named_parameters() if not adapted or ".lora_" in n]
        weights = {}
        for name, tensor in full_tensors(policy, names):
            world.beat("saving the model")
            if world.is_main:
                dtype = tensor.dtype if adapted else policy.compute_dtype
                weights[name.removeprefix("model.")] = tensor.to("cpu", dtype)
        if not adapted:  # buffers that are part of a model's folder, whole on every process
            parameters = {n.removeprefix("model.") for n, _ in policy.named_parameters(remove_duplicate=False)}
            state = policy.model.state_dict()
            weights |= {n: b.to("cpu") for n, b in state.items() if n not in parameters and world.is_main}
    try:
        if world.is_main:
            write_folder(target, lambda folder: save_model(folder, policy.model, loaded.processor, prompt, weights))
    except CheckpointError as error:
        failed = error
    world.raise_together(failed)


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Make folder `target` by calling `fill(tmp)` on a folder beside it and renaming. Raises `CheckpointError`."""
    try:
        with replacing(target) as aside:
            aside.mkdir()
            fill(aside)
    except Exception as error:
        if not _is_refusal_to_write(error):
            raise
        raise CheckpointError(
            f"{target}: could not be written ({_reason(error)}); earlier checkpoints are intact. To "
            f"continue, {writing_remedy(error)}, then start the same command again: the run continues from the last one"
        ) from error


def _is_refusal_to_write(error: Exception) -> bool:
    """Whether an error says that the system refused to write: OSError, torch's RuntimeError, or one from Rust.

    safetensors has an exception class of its own and tokenizers raises bare `Exception`; both end in "(os error N)".
    """
    return isinstance(error, OSError | RuntimeError) or "(os error " in str(error)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
