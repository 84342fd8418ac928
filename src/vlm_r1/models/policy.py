"""The policy: a vision-language model that scores packed rows, and the log-probs it gives to tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlm_r1.models.logprobs import capped, liger_kernel, token_logprobs
from vlm_r1.models.packing import PackedRow, PrefixGroup
from vlm_r1.models.shared_prefix import packed
from vlm_r1.models.tower_output import TowerOutput
from vlm_r1.models.vision_cache import VisionCache, WeightsVersion, repeated
from vlm_r1.records import Prompt, VisionInput

Staged = TypeVar("Staged", Prompt, PrefixGroup)
"""What holds the images of a prompt."""


class Policy(nn.Module):
    """A vision-language model that scores packed rows; what optimisers hold and FSDP shards.

    `model` is the transformers model; `suppressed` `(K,)` are the token ids it may not write (image placeholders);
    `mrope` says that it takes positions per axis (time, row, column). `compute_dtype` is the precision of its forward
    pass, whatever that of its weights. `logprob_kernel` computes log-probs: "torch" or "liger".
    """

    suppressed: Tensor

    def __init__(
        self,
        model: Any,
        suppressed: Tensor,
        *,
        mrope: bool,
        compute_dtype: torch.dtype = torch.float32,
        logprob_kernel: str = "torch",
    ) -> None:
        super().__init__()
        if logprob_kernel == "liger":
            liger_kernel()  # where it is not installed, say so before a run has begun
        self.model = model
        self.mrope, self.compute_dtype, self.logprob_kernel = mrope, compute_dtype, logprob_kernel
        self.vision_cache: VisionCache | None = None
        self._frozen: tuple[str, ...] = ()
        self._weights_version = WeightsVersion()
        self.tower_output: TowerOutput | None = None
        self.softcap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.register_buffer("suppressed", suppressed, persistent=False)

    def features(self, images: Sequence[VisionInput]) -> dict[str, Any]:
        """The vision tower's output for the images, in the form `hidden` takes; empty without images.

        Images of equal content are encoded once. With a cache (the tower is frozen) it runs only on images that the
        cache does not hold; a connector that is trained runs on all.
        """
        if not images:
            return {}
        if self.vision_cache is not None and self.tower_output is None:
            return {"image": self.kept(images)}
        distinct = list({image.key: image for image in images}.values())
        if len(distinct) == len(images):
            return {"image": self._encode_trained(images)}
        return {"image": repeated(self._encode_trained, distinct, [image.key for image in images])}

    def _encode_trained(self, images: Sequence[VisionInput]) -> Any:
        if self.tower_output is None or self.vision_cache is None:
            return self.encode_images(images)
        return self.tower_output.replay(self.encode_images, images, self.kept(images))

    def kept(self, images: Sequence[VisionInput]) -> Any:
        """What the cache keeps of images, and the tower makes of those that it does not hold."""
        assert self.vision_cache is not None
        weights = self._weights_version(self.model.get_parameter(name) for name in self._frozen)
        return self.vision_cache.lookup(images, weights, self._encode_frozen, self.suppressed.device)

    def cache_features(
        self, cache: VisionCache, frozen: Iterable[str], tower_output: TowerOutput | None = None
    ) -> None:
        """Keep in `cache` the features of images, or what their tower puts out where its connector is trained.

        `frozen` names the model's parameters that what is kept depends on.
        """
        self.vision_cache, self._frozen, self._weights_version = cache, tuple(frozen), WeightsVersion()
        self.tower_output = tower_output

    @torch.no_grad()
    def _encode_frozen(self, images: Sequence[VisionInput]) -> Any:
        training = self.model.training
        self.model.eval()  # what is kept must not depend on a draw of dropout
        try:
            if self.tower_output is None:
                return self.encode_images(images)
            return self.tower_output.record(self.encode_images, images)
        finally:
            self.model.train(training)

    def encode_images(self, images: Sequence[VisionInput]) -> Any:
        """The model's own `get_image_features` on these images."""
        tensors = merge_images([self._moved(image, self.suppressed.device) for image in images])
        return self.model.model.get_image_features(**tensors, return_dict=True)

    def stage(self, made: Staged) -> Staged:
        """The same with images as `encode_images` takes them, so that it need only copy them.

        They stay in host memory: pinned where the model is on a GPU, which then copies them while the host goes on.
        """
        staged = [self._moved(image, torch.device("cpu")) for image in made.images]
        if self.suppressed.is_cuda:
            staged = [replace(p, tensors={n: t.pin_memory() for n, t in p.tensors.items()}) for p in staged]
        return replace(made, images=tuple(staged))

    def _moved(self, image: VisionInput, device: torch.device) -> VisionInput:
        """On a device, numbers in the precision of the forward pass."""
        dtypes = {n: self.compute_dtype if t.is_floating_point() else t.dtype for n, t in image.tensors.items()}
        moved = {n: t.to(device, dtypes[n], non_blocking=True) for n, t in image.tensors.items()}
        return replace(image, tensors=moved)

    def hidden(self, token_ids: Tensor, positions: Tensor, features: Mapping[str, Any], layout: Any) -> Tensor:
        """Last hidden states `(N, D)` of a row: token ids `(N,)`, positions `(3, N)`."""
        with packed():
            out = self.model.model(
                input_ids=token_ids[None],
                position_ids=positions[:, None] if self.mrope else positions[:1],
                mm_encoder_outputs=dict(features),
                use_cache=False,
                layout=layout,
            )
        return out.last_hidden_state[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `(..., V)` of hidden states `(..., D)`."""
        return capped(self.model.get_output_embeddings(), self.softcap)(hidden)

    def forward(self, row: PackedRow, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy `(S,)` of every scored token of the row."""
        hidden = self.hidden(row.token_ids, row.positions, self.features(row.images), row.layout)
        found = self.score(hidden[row.predictors], row.targets, temperature)
        return found if row.scored is None else (found[0][row.scored], found[1][row.scored])

    def score(self, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy `(S,)` of the tokens `(S,)` that hidden states `(S, D)` predict."""
        head = self.model.get_output_embeddings()
        return token_logprobs(hidden, head, targets, self.suppressed, temperature, self.softcap, self.logprob_kernel)


def merge_images(images: Sequence[VisionInput]) -> dict[str, Tensor]:
    """The tensors of several images, one after the other."""
    names = dict.fromkeys(name for image in images for name in image.tensors)
    return {name: torch.cat([p.tensors[name] for p in images if name in p.tensors]) for name in names}
