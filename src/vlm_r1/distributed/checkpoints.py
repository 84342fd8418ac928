"""Distributed checkpoints: each process writes its shards as safetensors, while training goes on, and any number of
processes reads them back.

`checkpoint-N/` holds the trained parameters and the optimizer's state under the parameters' names, plus `state.json`,
whose `files` lists every file with its size and checksum, and whose `checksum` is that of its own content
(`distributed.whole`). It is written aside and renamed, so one that has its final name is whole. No pickle is read or
written.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from vlm_r1.distributed.processes import World
from vlm_r1.distributed.whole import about, checksum_of, list_checkpoints, remedy
from vlm_r1.errors import CheckpointError, writing_remedy
from vlm_r1.files import put, remove, sync

REFUSALS = (Exception, CheckpointException)
"""What reading and writing can raise; torch's own is no `Exception`."""
WEIGHT, STATE = "model.", "optim."
"""Prefixes of the tensors in a checkpoint: `model.NAME`, and `optim.NAME.exp_avg` and so on."""


class CheckpointWriter:
    """Writes one checkpoint at a time in the background. Every process calls `save` and `wait`.

    The last `keep` stay, and beside them that of step `kept`.
    """

    def __init__(self, run_dir: Path, world: World, keep: int) -> None:
        self.run_dir, self.world, self.keep = run_dir, world, keep
        self.kept: int | None = None
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._meshes: dict[Any, DeviceMesh] = {}
        self._writing: tuple[int, dict[str, Any], Future[dict[str, Any]]] | None = None
        for left in run_dir.glob(".checkpoint-*.tmp") if world.is_main else ():  # of a process that was killed
            remove(left)

    def save(self, step: int, policy: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Copy the tensors of `step` to CPU memory and start to write them; the one before is finished first.

        `state` is plain JSON data. Raises `CheckpointError` where a process could not write.
        """
        self.wait()
        aside = self.run_dir / f".checkpoint-{step}.tmp"
        if self.world.is_main:
            shutil.rmtree(aside, ignore_errors=True)
        self._agree(None)
        failed: tuple[int, str, str] | None = None
        future: Future[dict[str, Any]] | None = None
        try:
            aside.mkdir(parents=True, exist_ok=True)
            tensors = {name: self._copied(value) for name, value in tensors_of(policy, optimizer).items()}
            future = self._pool.submit(self._write, tensors, aside)
        except (OSError, RuntimeError) as error:
            failed = self._blame(error)
        self._agree(failed, aside)
        self._writing = (step, dict(state), future)  # type: ignore[assignment]

    def poll(self) -> None:
        """Finish the checkpoint that is being written if all processes have written it; every process calls it."""
        if self._writing is not None and all(self.world.gather(self._writing[2].done())):
            self.wait()

    def wait(self) -> None:
        """Finish the checkpoint that is being written, if any: it gets its name, and the oldest are dropped."""
        if self._writing is None:
            return
        step, state, future = self._writing
        self._writing = None
        aside, target = self.run_dir / f".checkpoint-{step}.tmp", self.run_dir / f"checkpoint-{step}"
        failed: tuple[int, str, str] | None = None
        mine: dict[str, Any] = {}
        try:
            mine = future.result()
        except REFUSALS as error:
            failed = self._blame(error)
        self._agree(failed, target)
        files = {name: written for part in self.world.gather(mine) for name, written in part.items()}
        try:
            if self.world.is_main:
                self._publish(aside, target, {"files": files, "step": step, **state})
        except OSError as error:
            failed = self._blame(error)
        self._agree(failed, target)

    def _publish(self, aside: Path, target: Path, state: dict[str, Any]) -> None:
        signed = {**state, "checksum": checksum_of(state)}
        (aside / "state.json").write_text(json.dumps(signed), encoding="utf-8")
        put(aside, target)
        self.prune()

    def prune(self) -> None:
        """Delete checkpoints beyond those that are kept, on the main process."""
        for old in list_checkpoints(self.run_dir)[: -self.keep] if self.world.is_main else ():
            if old.name != f"checkpoint-{self.kept}":
                shutil.rmtree(old)

    def _blame(self, error: BaseException) -> tuple[int, str, str]:
        """The rank that failed, how, and what to do: torch tells every rank what one of them raised."""
        if isinstance(error, CheckpointException) and error.failures:
            rank, (inner, _) = next(iter(error.failures.items()))
            return rank, reason(inner), writing_remedy(inner)
        return self.world.rank, reason(error), writing_remedy(error)

    def _agree(self, failed: tuple[int, str, str] | None, target: Path | None = None) -> None:
        """Every process learns whether one failed. Raises `CheckpointError` naming it."""
        for told in self.world.gather(failed):
            if told is not None:
                rank, why, cure = told
                if self.world.is_main and target is not None:
                    shutil.rmtree(target.with_name(f".{target.name.strip('.').removesuffix('.tmp')}.tmp"), True)
                who = f" by rank {rank}" if self.world.size > 1 else ""
                last = [path.name for path in list_checkpoints(self.run_dir)][-1:]
                left = f"{last[0]} is intact, and the run continues from it" if last else "the run begins anew"
                raise CheckpointError(
                    f"{target}: could not be written{who} ({why}); to continue, {cure}, then start the same command "
                    f"again: {left}"
                )

    def _write(self, tensors: dict[str, Any], aside: Path) -> dict[str, Any]:
        """Write this process's files; their names with sizes and checksums."""
        how: dict[str, Any] = {"no_dist": True} if self._group is None else {"process_group": self._group}
        with _quiet():
            dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True), **how)
        mine = sorted(aside.glob(f"shard-{self.world.rank + 1:05d}-*"))
        for file in mine:
            sync(file)
        return {file.name: about(file) for file in mine}

    def _copied(self, value: Any) -> Any:
        """A copy in CPU memory: training goes on while it is written."""
        if not isinstance(value, DTensor):
            return value.detach().to("cpu", copy=True)
        mesh = value.device_mesh
        if mesh.device_type != "cpu":
            shape, names = tuple(mesh.mesh.shape), mesh.mesh_dim_names
            if mesh not in self._meshes:
                self._meshes[mesh] = init_device_mesh("cpu", shape, mesh_dim_names=names)
            mesh = self._meshes[mesh]
        local = value.to_local().detach().to("cpu", copy=True)
        return DTensor.from_local(
            local, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
        )


def tensors_of(policy: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Trained parameters and the optimizer's state, sharded as they are, by the parameters' names."""
    found: dict[str, Any] = {}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            found[WEIGHT + name] = parameter.detach()
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"{STATE}{name}.{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return found


Place = Callable[[nn.Parameter], tuple[dict[str, Any], Tensor]]
"""Where an optimizer keeps the state of a parameter, and the tensor that this state is about."""


def load_checkpoint(checkpoint: Path, policy: nn.Module, place: Place, world: World) -> None:
    """Restore trained parameters and the optimizer's state, however many processes wrote them.

    Raises `CheckpointError` where a tensor is missing or a file cannot be read.
    """
    if (checkpoint / "optimizer.pt").is_file():
        raise CheckpointError(
            f"{checkpoint}: is of the release before, whose runs this one does not continue; start a new run from its "
            f"weights (model.path={checkpoint} and another run.dir), or finish the run with that release"
        )
    try:
        reader = HuggingFaceStorageReader(str(checkpoint))
        found: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
        places, numbers = _places_for(found, policy, place)
        if missing := sorted(places.keys() - found.keys()):
            raise CheckpointError(f"{checkpoint}: holds no {missing[0]}; {remedy(checkpoint)}")
        with _quiet(), torch.no_grad():
            dcp.load(places, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=world.size == 1)
        for state, key in numbers:
            state[key] = int(state[key])
    except CheckpointError:
        raise
    except REFUSALS as error:
        raise CheckpointError(f"{checkpoint}: cannot be read ({reason(error)}); {remedy(checkpoint)}") from error


def _places_for(
    found: Mapping[str, Any], policy: nn.Module, place: Place
) -> tuple[dict[str, Tensor], list[tuple[dict[str, Any], str]]]:
    """The tensors to read into, and the states that are integers: the optimizer gets state for the parameters that
    had some."""
    places: dict[str, Tensor] = {}
    numbers: list[tuple[dict[str, Any], str]] = []
    for name, parameter in policy.named_parameters():
        if not parameter.requires_grad:
            continue
        places[WEIGHT + name] = parameter.detach()
        head = f"{STATE}{name}."
        for key in (full.removeprefix(head) for full in found if full.startswith(head)):
            state, about = place(parameter)
            size, dtype = tuple(found[head + key].size), found[head + key].properties.dtype
            if size == tuple(about.shape):
                value = torch.zeros_like(about, dtype=dtype).detach()
            else:
                value = torch.zeros(size, dtype=dtype, device=about.device)
            state[key] = places[head + key] = value
            if not size and not dtype.is_floating_point:
                numbers.append((state, key))
    return places, numbers


def read_weights_of(checkpoint: Path, policy: nn.Module) -> None:
    """Put the trained parameters of a checkpoint into a whole policy on one process. Raises `CheckpointError`."""
    state = {WEIGHT + name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}
    try:
        with _quiet(), torch.no_grad():
            dcp.load(state, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    except REFUSALS as error:
        raise CheckpointError(f"{checkpoint}: cannot be read ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """The first line of what went wrong."""
    if isinstance(error, CheckpointException) and error.failures:  # what each rank raised
        error = next(iter(error.failures.values()))[0]
    return (str(error) or type(error).__name__).strip().splitlines()[0]


class _quiet(warnings.catch_warnings):
    """torch warns that one process is one process."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.filterwarnings("ignore", ".*torch.distributed is disabled.*")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
        return entered
