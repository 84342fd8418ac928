"""The arithmetic of a model: FLOPs of its matrix products and attention, from its weights and a few integers alone.

2 per weight and token, and 4 per attended pair of tokens and channel; the gradient of a product's input costs as much
again, and so does that of its weight. Left out is what is left out where model FLOPs utilisation (MFU) is reported:
norms, activations, softmax, the optimizer, and what is computed a second time to save memory. So is the state of a
recurrent layer, whose projections count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_r1.models.family import Family
from vlm_r1.models.freeze import blocks_of
from vlm_r1.records import VisionInput


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of a forward pass and of the backward pass that belongs to it.

    Example: `Work(2.0, 4.0) + Work(1.0, 0.0) == Work(3.0, 4.0)` and `2 * Work(1.0, 2.0) == Work(2.0, 4.0)`.
    """

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.backward + other.backward)

    def __rmul__(self, factor: float) -> Work:
        return Work(factor * self.forward, factor * self.backward)


class Arithmetic:
    """What a model computes for images, tokens and predictions, and what for the gradients of its trained parameters.

    Weights are counted once, here: freeze, adapt and shard the model first.
    """

    def __init__(self, family: Family) -> None:
        self.config = family.model.config
        text, vision = self.config.get_text_config(), self.config.vision_config
        parts = family.modules()
        head = family.model.get_output_embeddings()
        inside = {id(module) for part in parts["connector"] for module in part.modules()}
        count = _Count(getattr(text, "num_experts_per_tok", 0) or 0, _experts(text))
        # In the order of the forward pass: gradients flow back to the first trained parameter.
        tower = [m for part in parts["vision"] for m in part.modules() if id(m) not in inside]
        self._tower, tower_flows = count(tower, blocks_of(family, "vision"))
        self._connector, _ = count([m for part in parts["connector"] for m in part.modules()], [])
        language = [m for part in parts["language"] if part is not head for m in part.modules()]
        self._language, flows = count(language, blocks_of(family, "language"))
        self._head, _ = count([head], [])
        # Attention: (window or None, whether gradients flow) of each layer that has one.
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._channels = text.num_attention_heads * width
        self._layers = [(w, f) for (w, f) in zip(_windows(text), flows, strict=False) if w != 0]
        self._vision_channels: int = getattr(vision, "embed_dim", 0) or getattr(vision, "hidden_size", 0)
        whole = getattr(vision, "fullatt_block_indexes", None)
        self._vision_layers = [(whole is None or i in whole, f) for i, f in enumerate(tower_flows)]
        names = [name for part in parts["vision"] for name, _ in part.named_parameters()]
        patch = getattr(vision, "patch_size", 0)
        self._patch = patch if isinstance(patch, int) else patch[0]
        self._class_token = any(name.endswith(("class_embedding", "cls_token")) for name in names)

    def prefix(self, token_ids: Sequence[int] | Tensor, images: Sequence[VisionInput], encoded: float = 1.0) -> Work:
        """A prompt: its images through the tower (a share `encoded` of them) and its tokens through the layers."""
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
        connected = list(ids).count(self.config.image_token_id) * self._connector
        seen = sum((self.tower(image) for image in images), connected)
        return encoded * seen + self.tokens(0, len(ids))

    def tokens(self, start: int, stop: int) -> Work:
        """Tokens at places `start` to `stop - 1` of a sequence through all layers; each sees all before it."""
        found = (stop - start) * self._language
        for window in {window for window, _ in self._layers}:
            flows = [f for w, f in self._layers if w == window]
            forward = 4.0 * self._channels * causal_pairs(start, stop, window)
            found = found + Work(forward * len(flows), 2 * forward * sum(flows))
        return found

    def predictions(self, count: int) -> Work:
        """The output head at `count` places."""
        return count * self._head

    def shared(
        self,
        token_ids: Sequence[int] | Tensor,
        images: Sequence[VisionInput],
        completions: Sequence[int],
        contexts: Sequence[int] = (),
        encoded: float = 1.0,
    ) -> Work:
        """What must be computed for a prompt and completions of these lengths: the prompt once, each token once.

        The last token of a completion is predicted and not run. `contexts` are how many tokens at the start of each are
        not predicted.
        """
        L = len(token_ids)
        found = self.prefix(token_ids, images, encoded) + self.predictions(sum(completions) - sum(contexts))
        return sum((self.tokens(L, L + length - 1) for length in completions if length), found)

    def padded(
        self, token_ids: Sequence[int] | Tensor, images: Sequence[VisionInput], completions: Sequence[int]
    ) -> Work:
        """What a row of its own for each completion computes: images and prompt in each, all padded to the longest."""
        L, longest = len(token_ids), max(completions, default=0)
        row = self.prefix(token_ids, images) + self.tokens(L, L + longest) + self.predictions(longest)
        return len(completions) * row

    def tower(self, image: VisionInput) -> Work:
        """What the tower computes for images that were processed together."""
        patches, whole, windowed = self._patches(image)
        found = patches * self._tower
        for sees_all, flows in self._vision_layers:
            forward = 4.0 * self._vision_channels * (whole if sees_all else windowed)
            found = found + Work(forward, 2 * forward * flows)
        return found

    def _patches(self, image: VisionInput) -> tuple[int, int, int]:
        """Patches, pairs of patches that see each other in a layer over the whole, and in one over windows.

        None of a tower that takes neither a grid of patches nor square tiles of a size that its configuration states.
        """
        patches = whole = windowed = 0
        if "image_grid_thw" in image.tensors:
            window = getattr(self.config.vision_config, "window_size", 0) // self._patch
            for frames, rows, columns in image.tensors["image_grid_thw"].tolist():
                patches += frames * rows * columns
                whole += frames * (rows * columns) ** 2
                if window:
                    windowed += frames * _squares(rows, window) * _squares(columns, window)
        elif self._patch and "pixel_values" in image.tensors:
            *tiles, _, height, width = image.tensors["pixel_values"].shape
            each = (height // self._patch) * (width // self._patch) + self._class_token
            patches, whole = math.prod(tiles) * each, math.prod(tiles) * each**2
        return patches, whole, windowed


class _Count:
    """Counts modules in the order of the forward pass, and remembers whether a trained parameter came before."""

    def __init__(self, chosen: int, experts: int) -> None:
        self.chosen, self.experts, self.flows = chosen, experts, False

    def __call__(self, modules: Sequence[nn.Module], blocks: Sequence[nn.Module]) -> tuple[Work, list[bool]]:
        """FLOPs a token, and for each block whether gradients flow through its attention."""
        starts, before = {id(block) for block in blocks}, self.flows
        inside = not blocks
        forward = backward = 0.0
        for module in modules:
            if id(module) in starts:  # a block's norms come first, whatever the order in which it lists them
                inside = True
                self.flows |= any(p.requires_grad for p in module.parameters() if p.ndim == 1)
            for weights, trained in self._products(module):
                forward += 2.0 * weights
                backward += 2.0 * weights * ((self.flows if inside else before) + trained)
                self.flows |= trained
            self.flows |= any(p.requires_grad for p in module.parameters(recurse=False))
        seen, flows = False, []
        for block in blocks:
            seen = seen or any(p.requires_grad for p in block.parameters())
            flows.append(seen)
        return Work(forward, backward), flows

    def _products(self, module: nn.Module) -> Iterator[tuple[float, bool]]:
        """The matrices that a module itself multiplies with, in weights a token, and whether they are trained."""
        if isinstance(module, nn.Embedding):
            return
        if isinstance(module, nn.Linear):  # not by its parameter, which may be packed into 4 bits
            yield module.in_features * module.out_features, module.weight.requires_grad
            return
        for parameter in module.parameters(recurse=False):
            convolution = isinstance(module, nn.modules.conv._ConvNd) and parameter.ndim > 1
            if convolution or parameter.ndim == 2:
                yield parameter.numel(), parameter.requires_grad
            elif parameter.ndim == 3 and self.experts and parameter.shape[0] == self.experts:
                yield parameter.numel() * self.chosen / self.experts, parameter.requires_grad


def causal_pairs(start: int, stop: int, window: int | None = None) -> int:
    """Pairs of a token at places `start` to `stop - 1` and one it sees: itself and those before, at most `window`.

    >>> causal_pairs(0, 3), causal_pairs(2, 4), causal_pairs(2, 4, 2)
    (6, 7, 4)
    """
    edge = stop if window is None else min(max(start, window), stop)  # from here on a token sees `window`
    return (edge * (edge + 1) - start * (start + 1)) // 2 + (window or 0) * (stop - edge)


def _squares(length: int, window: int) -> int:
    """Sum of the squared lengths of a side's windows, the last of which may be shorter."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2


def _windows(text: Any) -> list[int | None]:
    """What each layer of a language model sees: a number of tokens, None for all, 0 where it has no attention."""
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return [getattr(text, "sliding_window", None)] * text.num_hidden_layers
    seen = {"sliding_attention": getattr(text, "sliding_window", None), "linear_attention": 0}
    return [seen.get(kind) for kind in kinds]


def _experts(text: Any) -> int:
    names = ("num_experts", "n_routed_experts", "num_local_experts")
    return next((n for name in names if (n := getattr(text, name, None))), 0)
