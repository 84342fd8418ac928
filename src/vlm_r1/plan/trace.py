"""Live bytes while a model's own code runs on tensors that have shapes and no values.

torch's `FakeTensorMode` runs operators, forward and backward, on shapes alone. `Trace` lets it run all that depends on
weights or images, and computes what does not (token ids, positions, masks), because code completions on those. Each
storage is counted from its first use to its end, whoever holds it: saved for the backward pass, cached or temporary.

A model's layers are alike, so most are skipped (`plan.layers.thin`): a stretch of the run that stands for several
layers is marked, and counts so many times.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Bytes = Counter[str]
"""What memory is for -> bytes."""
OTHER = "activations"
"""What is not named otherwise."""
LOGITS, GRADIENTS = "logits", "gradients"
aten = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
_COUNTING = {aten.arange.default, aten.arange.start, aten.arange.start_step}


@dataclass(slots=True)
class _Stretch:
    """A part of a run that happens `repeat` times: what stays of it, and the most it held, from its beginning on."""

    repeat: int
    net: Bytes
    top: Bytes


class Trace(TorchDispatchMode):
    """Within, operators on fake tensors run on shapes alone, and what they allocate is counted.

    `vocabulary` tells logits (the tensors with so many columns) from the rest; what is `known` counts nothing.
    """

    def __init__(self, fake: FakeTensorMode, vocabulary: int = -1, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.fake, self.vocabulary = fake, vocabulary
        self.backward_runs = False
        self._live: Bytes = Counter()
        self._total = 0
        self._storages: dict[int, tuple[weakref.ref[Any], str, int]] = {}
        self._stretches: list[_Stretch | tuple[str, str]] = []
        self._level: Bytes = Counter()
        self._begin(1)
        for tensor in known:
            self._count(tensor, OTHER, 0)

    # -- what a run says about itself -----------------------------------------------------------------------------

    def mark(self, repeat: int) -> None:
        """What follows, up to the next mark, happens `repeat` times."""
        start = self._start
        self._stretches.append(_Stretch(self._repeat, _minus(self._live, start), _minus(self._top, start)))
        self._begin(repeat)

    def rename(self, old: str, new: str) -> None:
        """All that is alive as `old` is called `new` from here on."""
        self.mark(1)
        for key, (storage, name, size) in self._storages.items():
            if name == old:
                self._storages[key] = (storage, new, size)
        self._live[new] += self._live.pop(old, 0)
        self._stretches.append((old, new))
        self._begin(1)

    def add(self, name: str, size: int) -> None:
        """Bytes (or, below 0, their end) that no operator of this run allocates."""
        self._live[name] += size
        self._total += size
        self._rise()

    def call(self, tensor: Tensor, name: str) -> None:
        """A live tensor's memory is `name`."""
        key = id(tensor.untyped_storage())
        if key in self._storages:
            storage, old, size = self._storages[key]
            self._storages[key] = (storage, name, size)
            self._live[old] -= size
            self._live[name] += size

    def peak(self) -> Bytes:
        """What was alive at the moment of the most memory since the trace began or was asked last."""
        self.mark(1)
        level, best = self._level, Counter(self._level)
        for stretch in self._stretches:
            if isinstance(stretch, tuple):
                level[stretch[1]] += level.pop(stretch[0], 0)
                continue
            for passed in {0, stretch.repeat - 1}:
                names = {*level, *stretch.net, *stretch.top}
                there = Counter({n: level[n] + passed * stretch.net[n] + stretch.top[n] for n in names})
                best = max(best, there, key=Counter.total)
            for name, size in stretch.net.items():
                level[name] += stretch.repeat * size
        self._stretches = []
        return Counter({name: size for name, size in best.items() if size > 0})

    @contextmanager
    def backward(self, parameters: Iterable[nn.Parameter], name: str = GRADIENTS) -> Iterator[None]:
        """Around a backward pass: gradients are called `name`, and layers that run again are part of it."""
        hooks = [
            p.register_post_accumulate_grad_hook(lambda p: self.call(p.grad, name))  # type: ignore[arg-type]
            for p in parameters
            if p.requires_grad
        ]
        self.backward_runs = True
        try:
            yield
        finally:
            self.backward_runs = False
            for hook in hooks:
                hook.remove()

    # -- counting -------------------------------------------------------------------------------------------------

    def _begin(self, repeat: int) -> None:
        self._repeat = repeat
        self._start, self._top, self._top_total = Counter(self._live), Counter(self._live), self._total

    def _rise(self) -> None:
        if self._total > self._top_total:
            self._top, self._top_total = Counter(self._live), self._total

    def _count(self, tensor: Tensor, name: str, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._storages:
            return
        size = storage.nbytes() if size is None else size
        self._storages[key] = (weakref.ref(storage, lambda _: self._free(key)), name, size)
        self.add(name, size)

    def _free(self, key: int) -> None:
        _, name, size = self._storages.pop(key)
        self._live[name] -= size
        self._total -= size

    def _name(self, out: Tensor) -> str:
        if out.ndim > 1 and out.shape[-1] == self.vocabulary:
            return LOGITS
        return OTHER

    # -- running --------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator: by shapes where a fake tensor takes part or floating-point numbers are made from nothing."""
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if func is aten.eq.Scalar and isinstance(args[0], FakeTensor):
            # Idefics 3 leaves out images whose values are all 0: none is.
            func, args = aten.zeros.default, (args[0].shape,)
            kwargs = {"dtype": torch.bool}
        if func is aten.cumsum.default and "dtype" in kwargs:  # its kernel makes a copy in that type first
            cast = {"dtype": kwargs.pop("dtype")}
            args = (self.__torch_dispatch__(aten._to_copy.default, types, args[:1], cast), *args[1:])
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(isinstance(x, FakeTensor) for x in tensors) or (not tensors and _makes_floats(func, kwargs)):
            if func in _INDEXED:
                args = (args[0], _numbered(args[1]), *args[2:])
            with self.fake:
                out = _grouped(*args, **kwargs) if func is aten._grouped_mm.default else func(*args, **kwargs)
        else:
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor, self._name(tensor))
        return out


def fake_floats(fake: FakeTensorMode, found: Any) -> Any:
    """The same with every floating-point tensor replaced by its shape."""
    return tree_map_only(Tensor, lambda t: fake.from_tensor(t) if t.is_floating_point() else t, found)


def _minus(a: Bytes, b: Bytes) -> Bytes:
    return Counter({name: a[name] - b[name] for name in {*a, *b}})


def _makes_floats(func: Any, kwargs: dict[str, Any]) -> bool:
    dtype = kwargs.get("dtype") or (torch.int64 if func in _COUNTING else torch.get_default_dtype())
    return bool(dtype.is_floating_point)


def _grouped(a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None) -> Tensor:
    """The shape of a product of a mixture's experts; torch's own rule for it takes bfloat16 alone."""
    groups = [] if (a.ndim == 3) != (b.ndim == 3) else [a.shape[0] if offs is None else offs.shape[0]]
    return a.new_empty([*groups, a.shape[-2], b.shape[-1]], dtype=out_dtype)


def _numbered(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Indices of an indexing operator with masks turned into numbers: how many they pick depends on their values."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool or isinstance(index, FakeTensor):
            found.append(index)
            continue
        with unset_fake_temporarily():
            found += index.nonzero().unbind(1)
    return found
