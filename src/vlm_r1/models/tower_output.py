"""The output of a frozen tower under a connector that is trained: recorded once, replayed without the tower's blocks.

What a connector's modules are called with is recorded on the way through the model's own `get_image_features`. In a
replay that runs again, but the blocks of the tower hand on what they get, and the connector's modules get what was
recorded: all that lies around them (splitting, reordering, a newline's embedding) is the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from vlm_r1.records import VisionInput

Encode = Callable[[Sequence[VisionInput]], Any]
"""A model's features of images."""


class TowerOutput:
    """Records and replays what reaches `connector`, modules that are called with a tensor first, behind `blocks`."""

    def __init__(self, connector: Sequence[nn.Module], blocks: Sequence[nn.Module]) -> None:
        self.connector, self.blocks = connector, blocks
        self._calls: set[str] | None = None

    def record(self, encode: Encode, images: Sequence[VisionInput]) -> dict[str, list[Tensor]]:
        """Number of the connector's call -> what it was given for each image.

        Left out are calls of a module behind another one, whose input depends on weights of the connector.
        """
        if self._calls is None:
            self._calls = self._first_calls(encode, images[:1])
        given = self._given(encode, images)
        patches = [len(image.tensors["pixel_values"]) for image in images]
        found: dict[str, list[Tensor]] = {}
        for call in sorted(self._calls, key=int):
            rows = len(given[call])
            found[call] = list(given[call].split([rows * n // sum(patches) for n in patches]))
        return found

    def _first_calls(self, encode: Encode, images: Sequence[VisionInput]) -> set[str]:
        """The calls whose input comes from the tower alone, told by a graph that begins where a module ends."""
        with torch.enable_grad(), ExitStack() as stack:
            for module in self.connector:
                hook = module.register_forward_hook(lambda _, args, out: out.detach().requires_grad_())
                stack.callback(hook.remove)
            given = self._given(encode, images)
        return {call for call, value in given.items() if not value.requires_grad}

    def _given(self, encode: Encode, images: Sequence[VisionInput]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
            found[str(len(found))] = args[0]

        with self._hooked(keep):
            encode(images)
        return found

    def replay(self, encode: Encode, images: Sequence[VisionInput], recorded: Any) -> Any:
        """The features of the images, differentiable in the connector's weights.

        `recorded` has an attribute for each call, as `VisionCache.lookup` returns it: a tensor for each image.
        """
        kept, calls = vars(recorded), count()

        def give(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            call = str(next(calls))
            return (torch.cat(list(kept[call])), *args[1:]) if call in kept else args

        with self._hooked(give), self._skipped():
            return encode(images)

    @contextmanager
    def _hooked(self, hook: Callable[..., Any]) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.connector:
                stack.callback(module.register_forward_pre_hook(hook).remove)
            yield

    @contextmanager
    def _skipped(self) -> Iterator[None]:
        before = [vars(block).get("forward") for block in self.blocks]
        for block in self.blocks:
            block.forward = _hand_on  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            for block, forward in zip(self.blocks, before, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward


def _hand_on(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]
