"""Decoder layers of the common kind for one token of each row, in few operations: the model's weights, the same sums.

Decoding runs each layer on a handful of rows, where the time goes into calls, not into arithmetic. A layer that is
RMSNorm, attention with rotary positions (its queries and keys normed or not), RMSNorm and a gated feed-forward, each
with a residual, takes about 30 calls here and 80 as transformers writes it. Everything else runs its own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm_r1.models.cpu_layers import is_plain
from vlm_r1.models.layout import Rule
from vlm_r1.models.policy import Policy
from vlm_r1.rollout.cache import DecodeCache

LAYERS = {
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen2VLDecoderLayer",
    "Qwen2_5_VLDecoderLayer",
    "Qwen3DecoderLayer",
    "Qwen3VLTextDecoderLayer",
}
"""Classes of transformers whose layers are of that kind."""
SHARDED = "FSDP"
"""What FSDP2 puts before the name of a class; its hooks tell whether the parameters are together."""
JOINED = 16 << 20
"""Bytes of weights of layers that run as one."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class LeanLayers:
    """The language model of a policy for one token of each row, over a cache."""

    def __init__(self, policy: Policy, rules: Mapping[int, Rule]) -> None:
        decoder = policy.model.model.get_decoder()
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, decoder.norm
        self.mrope, self.layers = policy.mrope, [_Layer(layer, rules[i]) for i, layer in enumerate(decoder.layers)]

    @staticmethod
    def fit(policy: Policy) -> bool:
        """Whether the policy's decoder is of the common kind, with plain linear layers."""
        decoder = policy.model.model.get_decoder()
        return hasattr(decoder, "rotary_emb") and all(
            type(layer).__name__.removeprefix(SHARDED) in LAYERS and _plain(layer) for layer in decoder.layers
        )

    def __call__(self, tokens_R: Tensor, positions_R: Tensor, cache: DecodeCache) -> Tensor:
        """Last hidden states `(R, D)` of tokens `(R,)` at positions `(R,)`."""
        hidden = self.embed(tokens_R)
        positions = positions_R.expand(3, 1, -1) if self.mrope else positions_R[None]
        cos, sin = (x[0][:, None] for x in self.rotary(hidden[None], positions))
        half = sin.shape[-1] // 2
        turned = torch.cat([-sin[..., :half], sin[..., half:]], -1)  # what `rotate_half` does to signs
        for number, layer in enumerate(self.layers):
            hidden = layer(number, hidden, cos, turned, cache)
        return self.norm(hidden)  # type: ignore[no-any-return]


class _Layer:
    def __init__(self, layer: Any, rule: Rule) -> None:
        self.layer, self.attention, self.mlp, self.rule = layer, layer.self_attn, layer.mlp, rule
        self.parts = [getattr(self.attention, name) for name in ("q_proj", "k_proj", "v_proj")]
        self.heads = [part.weight.shape[0] // self.attention.head_dim for part in self.parts]
        self.joined = _joined(self.parts)

    def __call__(self, number: int, hidden: Tensor, cos: Tensor, sin: Tensor, cache: DecodeCache) -> Tensor:
        attention, mlp = self.attention, self.mlp
        normed = _norm(self.layer.input_layernorm, hidden)
        projected = self.joined(normed)
        heads, (n_q, n_k, _) = projected.view(len(normed), -1, attention.head_dim), self.heads
        q, k, v = heads.split(self.heads, 1)
        if hasattr(attention, "q_norm"):
            q, k = _turn(_norm(attention.q_norm, q), cos, sin), _turn(_norm(attention.k_norm, k), cos, sin)
        else:
            q, k = _turn(heads[:, : n_q + n_k], cos, sin).split((n_q, n_k), 1)
        mixed = cache.attend_rows(number, q, k, v, self.rule)
        hidden = hidden + attention.o_proj(mixed.flatten(1))
        normed = _norm(self.layer.post_attention_layernorm, hidden)
        gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
        return hidden + mlp.down_proj(mlp.act_fn(gate) * up)


def _joined(parts: list[Any]) -> Callable[[Tensor], Tensor]:
    """Several linear layers of one input, their outputs side by side.

    Small ones on a CPU run as one, where one product costs less than several; larger ones are not copied for that.
    """
    weights, biases = [part.weight for part in parts], [part.bias for part in parts]
    if weights[0].device.type != "cpu" or sum(weight.nbytes for weight in weights) > JOINED:
        return lambda x: torch.cat([part(x) for part in parts], -1)
    weight, bias = torch.cat(weights), None
    if any(b is not None for b in biases):
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)])
    return lambda x: F.linear(x, weight, bias)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: `x cos + rotate_half(x) sin`, with the signs of the half in `sin`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _norm(module: Any, x: Tensor) -> Tensor:
    """RMSNorm; in half precision the module's own, whose rounding the update has too."""
    if x.dtype != torch.float32:
        return module(x)  # type: ignore[no-any-return]
    return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)


def _plain(layer: nn.Module) -> bool:
    """Whether a layer has the parts that are expected, and no adapters or hooks beside them."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = [getattr(attention, name, None) for name in PROJECTIONS]
    linears += [getattr(mlp, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    return (
        all(is_plain(module) for module in linears)
        and all(hasattr(norm, "variance_epsilon") for norm in norms)
        and not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())  # type: ignore[union-attr]
    )
