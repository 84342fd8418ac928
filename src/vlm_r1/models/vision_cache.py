"""Features of a frozen vision tower, computed once per picture and kept: in memory, and on disk where asked.

An entry is found by what made the picture's tensors (its content and the processor's settings) and by the weights of
tower and connector; it is what `get_image_features` returns for that picture, without the parts that the language
model does not read.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_r1.records import VisionInput

UNREAD = {"last_hidden_state", "hidden_states", "attentions"}
"""Fields of a tower's output that no language model reads when `pooler_output` is there."""
PER_LEVEL = {"deepstack_features"}
"""Fields that hold one tensor a level (of all pictures), not one a picture."""
Nested = Any
"""A tensor, or lists of them as the model returns them."""
Entry = dict[str, Nested]


class VisionCache:
    """At most `capacity` bytes in CPU memory, least recently used out first; every entry also in `folder`, if given.

    `hits` and `misses` count lookups since they were taken.
    """

    def __init__(self, capacity: int, folder: Path | None = None) -> None:
        self.capacity, self.folder = capacity, folder
        self.hits = self.misses = self.size = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def lookup(
        self, pictures: Sequence[VisionInput], weights: str, encode: Callable[[VisionInput], Any], device: torch.device
    ) -> SimpleNamespace:
        """The features of the pictures in order, as the model takes them; `encode` computes those that are missing."""
        found: dict[str, Entry] = {}
        for picture in pictures:
            if picture.key in found:
                self.hits += 1
                continue
            name = hashlib.sha256(f"{weights}{picture.key}".encode()).hexdigest()[:40]
            entry = self._get(name)
            if entry is None:
                self.misses += 1
                entry = _fields(encode(picture))
                self._write(name, entry)
                self._keep(name, entry)
            else:
                self.hits += 1
            found[picture.key] = entry
        return _join([found[picture.key] for picture in pictures], device)

    def take_counts(self) -> tuple[int, int]:
        """Lookups that were answered since the last call, and all lookups."""
        counts = self.hits, self.hits + self.misses
        self.hits = self.misses = 0
        return counts

    def _get(self, name: str) -> Entry | None:
        if name in self._entries:
            self._entries.move_to_end(name)
            return self._entries[name]
        if self.folder is None:
            return None
        try:
            tensors = load_file(self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError):  # absent, or damaged: it is computed and written again
            return None
        entry = {name: _nested(tensors, name) for name in dict.fromkeys(key.split(".")[0] for key in tensors)}
        self._keep(name, entry)
        return entry

    def _keep(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry
        self.size += _bytes(entry)
        while self.size > self.capacity and self._entries:
            self.size -= _bytes(self._entries.popitem(last=False)[1])

    def _write(self, name: str, entry: Entry) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{name}.{os.getpid()}.tmp"
        save_file({key: tensor.contiguous() for key, tensor in _tensors(entry).items()}, aside)
        os.replace(aside, self.folder / f"{name}.safetensors")


def _fields(output: Any) -> Entry:
    """The fields that the language model reads, in CPU memory."""

    def keep(value: Nested) -> Nested:
        if not isinstance(value, Tensor):
            return [keep(v) for v in value]
        return value.detach().to("cpu", copy=value._base is not None)  # a view would keep its whole base alive

    return {name: keep(value) for name, value in output.items() if name not in UNREAD and value is not None}


def _flat(value: Nested, at: str) -> dict[str, Tensor]:
    """Lists as `at.0`, `at.1`, ... and so on inside them."""
    if isinstance(value, Tensor):
        return {at: value}
    return {key: tensor for i, v in enumerate(value) for key, tensor in _flat(v, f"{at}.{i}").items()}


def _nested(flat: dict[str, Tensor], at: str) -> Nested:
    """The inverse of `_flat`."""
    if at in flat:
        return flat[at]
    n = len({key[len(at) + 1 :].split(".")[0] for key in flat if key.startswith(f"{at}.")})
    return [_nested(flat, f"{at}.{i}") for i in range(n)]


def _tensors(entry: Entry) -> dict[str, Tensor]:
    return {key: tensor for name, value in entry.items() for key, tensor in _flat(value, name).items()}


def _bytes(entry: Entry) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(entry).values())


def _join(entries: Sequence[Entry], device: torch.device) -> SimpleNamespace:
    """Entries one after the other, on a device."""

    def join(values: Sequence[Nested], per_level: bool) -> Nested:
        if isinstance(values[0], Tensor):
            return torch.cat(list(values)).to(device)
        if per_level:
            return [join(level, False) for level in zip(*values, strict=True)]
        return [tensor.to(device) for value in values for tensor in value]

    return SimpleNamespace(**{n: join([entry[n] for entry in entries], n in PER_LEVEL) for n in entries[0]})


class WeightsVersion:
    """A hash of parameters, computed again only when one of them was written to or replaced."""

    def __init__(self) -> None:
        self._seen: tuple[tuple[int, int], ...] = ()
        self._hash = ""

    def __call__(self, parameters: Iterable[Tensor]) -> str:
        """The hash of these parameters' present values."""
        current = list(parameters)
        seen = tuple((p.data_ptr(), p._version) for p in current)
        if seen != self._seen:
            digest = hashlib.sha256()
            for p in current:
                digest.update(str((p.dtype, tuple(p.shape))).encode())
                digest.update(p.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            self._seen, self._hash = seen, digest.hexdigest()
        return self._hash
