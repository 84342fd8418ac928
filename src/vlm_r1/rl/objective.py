"""The policy-gradient objective as pure functions over flat tensors of answer tokens; one record holds their inputs.

`S` scored tokens belong to `B` answers. Every function returns one value per token (or per answer, where it says so);
`rl.algorithms` says which of them an algorithm uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """All that a loss may look at; tensors are `(S,)`, and only `logprobs_S` carries a gradient.

    `logprobs_S` under the weights being trained; `sampler_S` as the rollout engine sampled them; `old_S` under the
    weights at the start of the update (proximal); `ref_S` under the reference model, None without one;
    `advantages_S` and `weights_S` (of a token in the step's loss) are those of the token's answer; `segments_S` numbers
    the answers, of which there are `n_segments`.
    """

    logprobs_S: Tensor
    sampler_S: Tensor
    old_S: Tensor
    ref_S: Tensor | None
    advantages_S: Tensor
    weights_S: Tensor
    segments_S: Tensor
    n_segments: int

    def per_segment(self, values_S: Tensor) -> Tensor:
        """Sums over the tokens of each answer `(B,)`."""
        return values_S.new_zeros(self.n_segments).index_add(0, self.segments_S, values_S)


def token_ratio(x: LossInputs) -> Tensor:
    """pi / pi_old of each token."""
    return (x.logprobs_S - x.old_S).exp()


def sequence_ratio(x: LossInputs) -> Tensor:
    """GSPO (arXiv 2507.18071, eq. 7): the geometric mean of an answer's token ratios, at each of its tokens."""
    log_ratio = x.logprobs_S - x.old_S
    counts = x.per_segment(torch.ones_like(log_ratio)).clamp(min=1)
    return (x.per_segment(log_ratio) / counts).exp()[x.segments_S]


def clipped(ratio_S: Tensor, x: LossInputs, low: float, high: float) -> Tensor:
    """PPO's clipped surrogate, to be minimised: -min(ratio A, clip(ratio, 1 - low, 1 + high) A)."""
    return -torch.minimum(ratio_S * x.advantages_S, ratio_S.clamp(1 - low, 1 + high) * x.advantages_S)


def clipped_weight(ratio_S: Tensor, x: LossInputs, low: float, high: float) -> Tensor:
    """CISPO (arXiv 2506.13585, eq. 4): -sg(clip(ratio)) A log pi; every token keeps a gradient."""
    return -ratio_S.detach().clamp(1 - low, 1 + high) * x.advantages_S * x.logprobs_S


def k3(logprobs_S: Tensor, ref_S: Tensor) -> Tensor:
    """Schulman's unbiased, non-negative estimate of KL(pi || ref): exp(ref - pi) - (ref - pi) - 1."""
    difference = ref_S - logprobs_S
    return difference.exp() - difference - 1


def importance_weights(x: LossInputs, mode: str, cap: float) -> Tensor:
    """pi_old / pi_sampler of each token, or of its whole answer (`sequence_*`), without a gradient.

    Above `cap` it is cut to it (`*_truncate`, arXiv 2508.18588) or set to 0 (`*_mask`), as TRL does; `off` is 1.
    """
    if mode == "off":
        return torch.ones_like(x.sampler_S)
    difference = x.old_S - x.sampler_S
    if mode.startswith("sequence"):
        difference = x.per_segment(difference)[x.segments_S]
    weights = difference.exp()
    return weights.clamp(max=cap) if mode.endswith("truncate") else weights.masked_fill(weights > cap, 0.0)


def answer_mean(lengths_B: Tensor, n_answers: int, n_tokens: int, limit: int) -> Tensor:
    """Weight of a token in each answer `(B,)`: the mean over answers of the mean over their tokens (GRPO).

    `n_answers` and `n_tokens` are those of the whole step, on all processes; `limit` is the token limit.
    """
    return 1.0 / (n_answers * lengths_B.clamp(min=1))


def answer_sum(lengths_B: Tensor, n_answers: int, n_tokens: int, limit: int) -> Tensor:
    """The mean over answers of the sum over their tokens: the log-prob of the whole answer (REINFORCE, RLOO)."""
    return torch.full((len(lengths_B),), 1.0 / n_answers)


def token_mean(lengths_B: Tensor, n_answers: int, n_tokens: int, limit: int) -> Tensor:
    """The mean over all tokens of the step (DAPO, arXiv 2503.14476, eq. 12)."""
    return torch.full((len(lengths_B),), 1.0 / max(1, n_tokens))


def constant_length(lengths_B: Tensor, n_answers: int, n_tokens: int, limit: int) -> Tensor:
    """The sum over tokens by answers times the token limit: no bias toward short or long answers (Dr. GRPO)."""
    return torch.full((len(lengths_B),), 1.0 / (n_answers * limit))
