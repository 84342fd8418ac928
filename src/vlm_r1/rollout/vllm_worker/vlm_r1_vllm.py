"""Runs inside vLLM's workers: takes weights from safetensors files, and says which parameters did not come.

vLLM imports this module in every worker because `--worker-extension-cls` names a class of it; the folder is on the
server's PYTHONPATH. It belongs to vLLM's environment and imports nothing of vlm_r1.

One update is one call of `/update_weights` with `{"update_info": {"paths": [...]}}` that holds every parameter, between
`/start_weight_update` and `/finish_weight_update`.
"""

from __future__ import annotations

import inspect
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.utils import get_layer_tensors

BACKEND = "vlm_r1_files"
SHOWN = 5
"""Missing parameters that an error names; the first of them in the model's order."""


@dataclass
class FilesInit(WeightTransferInitInfo):
    """Nothing has to be agreed on: the folder of the files comes from the server's environment."""


@dataclass
class FilesUpdate(WeightTransferUpdateInfo):
    """Safetensors files that together hold every parameter once, under the names of the model's checkpoint."""

    paths: list[str]


class FilesEngine(WeightTransferEngine[FilesInit, FilesUpdate]):
    """Loads weights from files that this machine sees: from memory-backed ones it takes as long as copying them."""

    init_info_cls = FilesInit
    update_info_cls = FilesUpdate

    def init_transfer_engine(self, init_info: FilesInit) -> None:
        """Nothing to do: there is no connection."""

    def start_weight_update(self) -> None:
        """Put the layers into the form in which they load; their present tensors are kept until new ones are whole."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in the base class, which waits for an accelerator that a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FilesUpdate) -> None:
        """Load all files. Raises where one is refused or parameters are missing; layers that did not come whole then
        keep the tensors they had, so the model runs and the next update starts afresh."""
        try:
            with ExitStack() as stack:
                self.model.load_weights(_tensors([_allowed(path) for path in update_info.paths], stack))
            if missing := unwritten(self.model):
                more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
                raise ValueError(f"weights are missing for: {', '.join(missing[:SHOWN])}{more}")
        except BaseException:
            self._put_back()
            raise

    def finish_weight_update(self) -> None:
        """Leave the form in which layers load."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing to release."""

    def _put_back(self) -> None:
        """Without this, a half-loaded layer would take this update's tensors and some of the next one's for a whole."""
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            info.load_numel = 0
            info.loaded_weights.clear()
        finalize_layerwise_reload(self.model, self.model_config)


def _allowed(path: str) -> Path:
    root = os.environ.get("VLM_R1_WEIGHTS_DIR")
    if not root:
        raise PermissionError("VLM_R1_WEIGHTS_DIR is not set: this server takes weights from no folder")
    file = Path(path).resolve()
    if not file.is_relative_to(Path(root).resolve()):
        raise PermissionError(f"{path} does not lie under VLM_R1_WEIGHTS_DIR ({root})")
    if file.suffix != ".safetensors":
        raise PermissionError(f"{path} is not a .safetensors file")
    return file


def _tensors(files: list[Path], stack: ExitStack) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of all files, sorted by name: a loader is given each part of the model in one piece."""
    opened: dict[str, Any] = {}
    for file in files:
        content = stack.enter_context(safe_open(file, framework="pt"))
        for name in content.keys():  # noqa: SIM118  # not a mapping
            if name in opened:
                raise ValueError(f"{name} is in more than one file; {file} is the second")
            opened[name] = content
    for name in sorted(opened):
        yield name, opened[name].get_tensor(name)


@torch.no_grad()
def unwritten(model: torch.nn.Module) -> list[str]:
    """Parameters of the served model, by its names for them, of which some element was not loaded.

    To be called between start and finish of a layerwise reload: vLLM closes a layer when all its elements came. One
    that is open lacks something, or has padding, or shares its tensor with a whole one (a tied head).
    """
    whole: set[int] = set()
    lacking: dict[str, int] = {}
    for prefix, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if not info.can_load():
            whole.update(tensor.data_ptr() for tensor in layer._parameters.values() if tensor is not None)
            continue
        kept = info.kernel_tensors[0] if info.kernel_tensors is not None else {}
        for name, tensor in get_layer_tensors(layer).items():
            if name in layer._buffers and (info.load_numel == 0 or name in layer._non_persistent_buffers_set):
                continue  # vLLM puts it back as it was
            place = kept[name].data_ptr() if name in kept else 0
            if _whole(tensor, [bound for of, bound in info.loaded_weights if of == name]):
                whole.add(place)
            else:
                lacking[f"{prefix}.{name}" if prefix else name] = place
    whole.discard(0)  # what has no storage
    return [name for name, place in lacking.items() if place not in whole]


def _whole(tensor: torch.Tensor, loads: list[inspect.BoundArguments]) -> bool:
    """Whether these loads write every element of a parameter: they are done once more, on a tensor of NaN."""
    if not loads or not tensor.is_floating_point():
        return bool(loads) or not tensor.numel()
    probe = torch.full(tensor.shape, torch.nan, dtype=tensor.dtype, device="cpu")
    probe.__class__ = tensor.__class__
    probe.__dict__ = tensor.__dict__.copy()
    loader = tensor.weight_loader  # type: ignore[attr-defined]
    while loader.__name__ == "online_process_loader":  # vLLM's wrapper, which only counts and keeps
        loader = loader.__wrapped__
    for load in loads:
        again = inspect.BoundArguments(load.signature, OrderedDict(load.arguments, param=probe))
        loader(*again.args, **again.kwargs)
    return not bool(probe.isnan().any())


class WorkerExtension:
    """Named by `--worker-extension-cls` so that vLLM imports this module in its workers before it loads a model."""


WeightTransferEngineFactory.register_engine(BACKEND, FilesEngine)
