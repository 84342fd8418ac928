"""CUDA graphs of decoding steps: a step's kernels are recorded once and replayed, so the host launches one thing.

A step can be recorded where it is the same work each time: nothing of it on the host, and the same rows. It is recorded
again when rows are dropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 0.02
"""Relative difference of logits between a replayed step and the same one run by itself: rounding of half precision."""


class StepGraph:
    """A decoding step `(tokens (R,)) -> logits (R, V)`, which is recorded at its second call and replayed from then on.

    The first replay is compared with the step it repeats (`rewind` takes the state back by one); where it differs, or
    recording fails, steps run by themselves from then on, with a warning.
    """

    broken = False

    def __init__(self, forward: Callable[[Tensor], Tensor], rewind: Callable[[], None]) -> None:
        self.forward, self.rewind = forward, rewind
        self.graph: torch.cuda.CUDAGraph | None = None
        self.tokens: Tensor | None = None
        self.checked = False

    def __call__(self, tokens_R: Tensor) -> Tensor:
        """The logits of one more token of each row."""
        if StepGraph.broken:
            return self.forward(tokens_R)
        if self.tokens is None or len(self.tokens) != len(tokens_R):  # kernels load and settle in a step by itself
            self.tokens, self.graph = tokens_R.clone(), None
            self.logits = self.forward(tokens_R)
            return self.logits
        if self.graph is None and not self._record():
            return self.forward(tokens_R)
        assert self.graph is not None
        self.tokens.copy_(tokens_R)
        self.graph.replay()
        return self.logits

    def _record(self) -> bool:
        expected = self.logits
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.logits = self.forward(self.tokens)  # type: ignore[arg-type]
        except RuntimeError as error:
            return self._give_up(f"a decoding step cannot be recorded ({str(error).splitlines()[0]})")
        if not self.checked:
            self.rewind()
            graph.replay()
            difference = float((self.logits.float() - expected.float()).norm() / expected.float().norm())
            if not difference < TOLERANCE:
                self.rewind()
                self.forward(self.tokens)  # type: ignore[arg-type]
                return self._give_up(f"a replayed decoding step is off by {difference:.1%}")
            self.checked = True
        self.graph = graph
        return True

    def _give_up(self, reason: str) -> bool:
        warnings.warn(f"rollout.cuda_graphs: {reason}; steps run one by one", stacklevel=2)
        StepGraph.broken = True
        return False
