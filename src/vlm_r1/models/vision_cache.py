"""Features of a frozen vision tower, computed once per image and kept: in memory, and on disk where asked.

An entry is found by what made the image's tensors (its content and the processor's settings) and by the weights of
tower and connector; it is what `get_image_features` returns for that image, without the parts that the language
model does not read. Under a connector that is trained it is what the tower hands to it (`tower_output.py`), and is
found by the tower's weights alone. Images that are missing are encoded together: their features equal those of each
alone up to the order of summation.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm_r1.files import replacing
from vlm_r1.records import VisionInput

UNREAD = {"last_hidden_state", "hidden_states", "attentions"}
"""Fields of a tower's output that no language model reads when `pooler_output` is there."""
PER_LEVEL = {"deepstack_features"}
"""Fields that hold one tensor a level (of all images), not one an image."""
ENCODED_AT_ONCE = 1 << 25
"""Most numbers that the tensors of images encoded together have: about five images of a million pixels in Qwen's
patches, which hold every pixel twice. It bounds the memory of a tower's pass; one larger image is encoded by itself.
"""
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
        self._one_by_one = False
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def lookup(
        self,
        images: Sequence[VisionInput],
        weights: str,
        encode: Callable[[Sequence[VisionInput]], Mapping[str, Nested]],
        device: torch.device,
    ) -> SimpleNamespace:
        """The features of the images in order, as the model takes them; `encode` computes those that are missing."""
        wanted = {image.key: image for image in images}
        names = {key: hashlib.sha256(f"{weights}{key}".encode()).hexdigest()[:40] for key in wanted}
        found = {key: entry for key, name in names.items() if (entry := self._get(name)) is not None}
        missing = [image for key, image in wanted.items() if key not in found]
        self.misses += len(missing)
        self.hits += len(images) - len(missing)
        for batch in _batches(missing):
            for image, entry in zip(batch, self._encode(batch, encode), strict=True):
                self._write(names[image.key], entry)
                self._keep(names[image.key], entry)
                found[image.key] = entry
        return _join([found[image.key] for image in images], device)

    def _encode(
        self, batch: Sequence[VisionInput], encode: Callable[[Sequence[VisionInput]], Mapping[str, Nested]]
    ) -> list[Entry]:
        """An entry an image; of a model whose output does not say what is whose, each is encoded by itself."""
        if len(batch) > 1 and not self._one_by_one:
            try:
                return _split(encode(batch), batch)
            except _Unsplittable:
                self._one_by_one = True
        return [_kept(encode([image])) for image in batch]

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
        with replacing(self.folder / f"{name}.safetensors", durable=False) as aside:
            save_file({key: tensor.contiguous() for key, tensor in _tensors(entry).items()}, aside)


class _Unsplittable(Exception):
    """Nothing says which part of an output belongs to which image."""


def _batches(images: Sequence[VisionInput]) -> Iterator[list[VisionInput]]:
    """Images in order, as many at a time as `ENCODED_AT_ONCE` allows."""
    batch: list[VisionInput] = []
    held = 0
    for image in images:
        size = sum(tensor.numel() for tensor in image.tensors.values())
        if batch and held + size > ENCODED_AT_ONCE:
            yield batch
            batch, held = [], 0
        batch.append(image)
        held += size
    if batch:
        yield batch


def _kept(output: Mapping[str, Nested]) -> Entry:
    """The fields that the language model reads, in CPU memory."""

    def keep(value: Nested) -> Nested:
        if not isinstance(value, Tensor):
            return [keep(v) for v in value]
        return value.detach().to("cpu", copy=value._base is not None)  # a view would keep its whole base alive

    return {name: keep(value) for name, value in _read(output).items()}


def _read(output: Mapping[str, Nested]) -> Entry:
    """The fields that the language model reads."""
    return {name: value for name, value in output.items() if name not in UNREAD and value is not None}


def _split(output: Mapping[str, Nested], batch: Sequence[VisionInput]) -> list[Entry]:
    """The entries of images that were encoded together."""
    return [_kept(entry) for entry in _by_image(output, batch)]


def _by_image(output: Mapping[str, Nested], batch: Sequence[VisionInput]) -> list[Entry]:
    entries: list[Entry] = [{} for _ in batch]
    for name, value in _read(output).items():
        levels = [_shares(level, batch) for level in (value if name in PER_LEVEL else [value])]
        for i, entry in enumerate(entries):
            entry[name] = [level[i] for level in levels] if name in PER_LEVEL else levels[0][i]
    return entries


def repeated(
    encode: Callable[[Sequence[VisionInput]], Mapping[str, Nested]], images: Sequence[VisionInput], order: Sequence[str]
) -> SimpleNamespace:
    """The features of the images whose keys are `order`, as the model takes them; each of `images` is encoded once."""
    try:
        entries = _by_image(encode(images), images)
    except _Unsplittable:
        entries = [_read(encode([image])) for image in images]
    found = {image.key: entry for image, entry in zip(images, entries, strict=True)}
    return _join([found[key] for key in order], next(iter(_tensors(entries[0]).values())).device)


def _shares(value: Nested, batch: Sequence[VisionInput]) -> list[Nested]:
    """A list's items, or a tensor's rows, by image: one each, or as many as one of the image's tensors has rows."""
    names = dict.fromkeys(name for image in batch for name in image.tensors)
    counts = [[len(p.tensors[name]) if name in p.tensors else 0 for p in batch] for name in names]
    for sizes in ([1] * len(batch), *counts):
        if sum(sizes) == len(value):
            ends = list(accumulate(sizes))
            return [value[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    raise _Unsplittable


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
