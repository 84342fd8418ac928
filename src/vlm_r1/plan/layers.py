"""A model's blocks are alike: one of each kind runs and counts for all, the others hand on what they get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from vlm_r1.plan.trace import Trace
from vlm_r1.plan.units import Marks

Watch = Callable[[], Marks]
"""The marks of the current trace."""


def repeats_of(blocks: Sequence[nn.Module]) -> list[int]:
    """For each block the number of blocks it stands for: the first and the last for themselves, one for all of a kind.

    Blocks are of a kind where they have the same parts and settings, the same parts of them are trained, and so are
    those of the block before: then they take the same memory.
    """
    kinds = [_kind(block) for block in blocks]
    trained = [any(p.requires_grad for p in block.parameters()) for block in blocks]
    before = [False, *trained]
    found = [1] * len(blocks)
    inner = {i: (kinds[i], before[i]) for i in range(1, len(blocks) - 1)}
    last = {kind: i for i, kind in inner.items()}
    counts = Counter(inner.values())
    for i, kind in inner.items():
        found[i] = counts[kind] if i == last[kind] else 0
    return found


def _kind(block: nn.Module) -> str:
    settings = [
        sorted((k, v) for k, v in vars(m).items() if isinstance(v, (int, float, str)) and "idx" not in k)
        for m in block.modules()
    ]
    return f"{block}{settings}{[(name, p.requires_grad) for name, p in block.named_parameters()]}"


def thin(blocks: Sequence[nn.Module], repeats: Sequence[int], trace: Callable[[], Trace], marks: Watch) -> None:
    """Let each block count `repeats` times in the current trace; those with 0 do nothing but hand on what they get.

    They stay where they are, so that code which counts layers finds each in its place.
    """
    returns: list[type] = [Tensor]
    for block, repeat in zip(blocks, repeats, strict=True):
        if repeat == 0:
            if hasattr(block, "gradient_checkpointing"):
                block.gradient_checkpointing = False  # type: ignore[assignment]
            block.forward = _skipped(block, marks, returns)  # type: ignore[method-assign,assignment]
        else:
            block.register_forward_pre_hook(_entered(repeat, trace, marks), with_kwargs=True)
            block.register_forward_hook(_left(repeat, trace, marks, returns))


def _skipped(block: nn.Module, marks: Watch, returns: list[type]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        marks().skip(block)
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, None) if returns[0] is tuple else hidden

    return forward


def _entered(repeat: int, trace: Callable[[], Trace], marks: Watch) -> Callable[..., Any]:
    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        mine = hidden.view_as(hidden)  # with a gradient hook of its own, beside that of the block before
        if not trace().backward_runs:
            now = marks()
            now.enter(block, repeat)
            if mine.requires_grad:
                mine.register_hook(lambda grad: now.leave_backward(block))
        return ((mine, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": mine})

    return hook


def _left(repeat: int, trace: Callable[[], Trace], marks: Watch, returns: list[type]) -> Callable[..., None]:
    def hook(block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        returns[0] = tuple if isinstance(out, tuple) else Tensor
        if not trace().backward_runs:
            now = marks()
            now.leave(block)
            if hidden.requires_grad:
                hidden.register_hook(lambda grad: now.enter_backward(block, repeat))

    return hook


def watch(module: nn.Module, marks: Watch) -> None:
    """Let a module that is no block say when it begins and ends."""

    def left(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        now = marks()
        now.leave(module)
        first = out[0] if isinstance(out, tuple) else out
        if first.requires_grad:
            first.register_hook(lambda grad: now.enter_backward(module))

    module.register_forward_pre_hook(lambda module, args: marks().enter(module))
    module.register_forward_hook(left)
