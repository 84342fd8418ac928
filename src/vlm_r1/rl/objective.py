"""The policy-gradient objective as pure functions over flat tensors of answer tokens.

`S` scored tokens belong to `B` answers (`owner_S` in 0..B-1); `logprobs_S` carry the gradient, `old_S` and `ref_S` do
not. Every function returns one value per token; `rl.algorithms` says which of them an algorithm uses.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_ratio(logprobs_S: Tensor, old_S: Tensor, owner_S: Tensor) -> Tensor:
    """pi / pi_old of each token."""
    return (logprobs_S - old_S).exp()


def sequence_ratio(logprobs_S: Tensor, old_S: Tensor, owner_S: Tensor) -> Tensor:
    """GSPO (arXiv 2507.18071, eq. 7): the geometric mean of an answer's token ratios, at each of its tokens."""
    log_ratio = logprobs_S - old_S
    answers = int(owner_S.max()) + 1 if len(owner_S) else 0
    sums = log_ratio.new_zeros(answers).index_add(0, owner_S, log_ratio)
    counts = log_ratio.new_zeros(answers).index_add(0, owner_S, torch.ones_like(log_ratio))
    return (sums / counts.clamp(min=1)).exp()[owner_S]


def clipped(ratio_S: Tensor, logprobs_S: Tensor, advantages_S: Tensor, low: float, high: float) -> Tensor:
    """PPO's clipped surrogate, to be minimised: -min(ratio A, clip(ratio, 1 - low, 1 + high) A)."""
    return -torch.minimum(ratio_S * advantages_S, ratio_S.clamp(1 - low, 1 + high) * advantages_S)


def clipped_weight(ratio_S: Tensor, logprobs_S: Tensor, advantages_S: Tensor, low: float, high: float) -> Tensor:
    """CISPO (arXiv 2506.13585, eq. 4): -sg(clip(ratio)) A log pi; every token keeps a gradient."""
    return -ratio_S.detach().clamp(1 - low, 1 + high) * advantages_S * logprobs_S


def k3(logprobs_S: Tensor, ref_S: Tensor) -> Tensor:
    """Schulman's unbiased, non-negative estimate of KL(pi || ref): exp(ref - pi) - (ref - pi) - 1."""
    difference = ref_S - logprobs_S
    return difference.exp() - difference - 1


def answer_mean(lengths_B: Tensor, limit: int) -> Tensor:
    """Weight of a token in each answer `(B,)`: the mean over answers of the mean over their tokens (GRPO)."""
    return 1.0 / (len(lengths_B) * lengths_B.clamp(min=1))


def answer_sum(lengths_B: Tensor, limit: int) -> Tensor:
    """The mean over answers of the sum over their tokens: the log-prob of the whole answer (REINFORCE, RLOO)."""
    return torch.ones(len(lengths_B)) / len(lengths_B)


def token_mean(lengths_B: Tensor, limit: int) -> Tensor:
    """The mean over all tokens of the step (DAPO, arXiv 2503.14476, eq. 12)."""
    return torch.ones(len(lengths_B)) / lengths_B.sum().clamp(min=1)


def constant_length(lengths_B: Tensor, limit: int) -> Tensor:
    """The sum over tokens by answers times the token limit: no bias toward short or long answers (Dr. GRPO)."""
    return torch.ones(len(lengths_B)) / (len(lengths_B) * limit)
