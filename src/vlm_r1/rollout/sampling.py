"""From logits to tokens: temperature, top-k, top-p, min-p, and where an answer ends."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm_r1.records import Prompt, SamplingParams

END_OF_ANSWER = "</answer>"


def uniforms(prompts: Sequence[Prompt], first: int, count: int, sampling: SamplingParams) -> Tensor | None:
    """The random numbers in [0, 1) of answers `first` to `first + count - 1` of each prompt, `(B, max_new_tokens)`.

    None for greedy decoding. A row depends on the seed, the prompt's number and the answer's number alone: neither on
    what else is sampled nor on the process or the device that samples it.
    """
    if sampling.seed is None:
        return None
    rows = []
    for prompt in prompts:
        for answer in range(first, first + count):
            name = repr((*sampling.seed, prompt.number, answer)).encode()
            seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big", signed=True)
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.double))
    return torch.stack(rows) if rows else torch.zeros(0, sampling.max_new_tokens, dtype=torch.double)


def choose(logprobs_BV: Tensor, settings: SamplingParams, u_B: Tensor | None) -> Tensor:
    """One token per row `(B,)`, from log-probs at the sampling temperature and one uniform number per row; without
    these the likeliest.

    Filters apply in the order top-k, top-p, min-p, as in the common samplers; the log-prob that a rollout records is
    the unfiltered one, which is what the update computes.
    """
    if u_B is None:
        return logprobs_BV.argmax(-1)
    # The inverse of the cumulative distribution: an order of magnitude faster than torch.multinomial on a CPU. "right"
    # takes the first token whose cumulative probability is above u, so never one of probability 0.
    cumulative = filtered(logprobs_BV, settings).exp().cumsum(-1, dtype=torch.double)
    u = u_B[:, None] * (1 - 2**-50) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, u, right=True)[:, 0]


def filtered(logprobs_BV: Tensor, settings: SamplingParams) -> Tensor:
    """Log-probs with the tokens that top-k, top-p and min-p leave out at minus infinity; the likeliest always stays."""
    kept = logprobs_BV
    if 0 < settings.top_k < kept.shape[-1]:
        smallest = kept.topk(settings.top_k, -1).values[..., -1:]
        kept = kept.masked_fill(kept < smallest, -torch.inf)
    if settings.top_p < 1:
        ordered, order = kept.sort(-1, descending=True)
        mass = torch.softmax(ordered, -1).cumsum(-1)
        beyond = torch.cat([torch.zeros_like(mass[..., :1]), mass[..., :-1]], -1) >= settings.top_p
        kept = kept.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if settings.min_p > 0:
        floor = kept.amax(-1, keepdim=True) + torch.log(torch.tensor(settings.min_p))
        kept = kept.masked_fill(kept < floor, -torch.inf)
    return kept


class StopRule:
    """When a row is finished: the end-of-text token, or the text `</answer>`, however it is cut into tokens."""

    def __init__(self, tokenizer: Any, eos_token_ids: list[int], stop_at_answer: bool) -> None:
        self.tokenizer = tokenizer
        stops = list(eos_token_ids)
        self._tail = 0
        self._may_end: set[int] = set()
        if stop_at_answer:
            ids = tokenizer(END_OF_ANSWER, add_special_tokens=False)["input_ids"]
            if len(ids) == 1:
                stops += ids
            else:
                self._tail = len(END_OF_ANSWER)
                self._may_end = {i for i in range(len(tokenizer)) if ">" in tokenizer.decode([i])}
        self.stops = torch.tensor(sorted(set(stops)))

    def finished(self, last_R: Tensor, tokens_BT: Tensor, rows: Tensor) -> Tensor:
        """Bool `(R,)`: which rows end with their last token `(R,)`.

        The tokens of row r, the last one included, are `tokens_BT[rows[r]]`.
        """
        done = torch.isin(last_R, self.stops.to(last_R.device))
        if self._tail:
            for row, token in enumerate(last_R.tolist()):
                if token in self._may_end:
                    tail = tokens_BT[rows[row], -self._tail :].tolist()
                    done[row] = done[row] | (END_OF_ANSWER in self.tokenizer.decode(tail))
        return done
