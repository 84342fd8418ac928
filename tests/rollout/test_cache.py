"""Caches of decoding against the plain padded forward and against each other, while answers end early."""

import pytest
import torch
import zoo
from support import (
    FAMILIES,
    answered,
    attending,
    mixed_prompts,
    plain_logprobs,
    plain_model,
    row_of,
    tiny,
)

from vlm_r1.records import SamplingParams
from vlm_r1.rollout import cache, decoding
from vlm_r1.rollout.cache import DenseCache, FlashCache, Prefill, decode_cache
from vlm_r1.rollout.decoding import Decoding

STOPS = list(range(11, 400, 8))
KINDS = {"flash": FlashCache, "sdpa": DenseCache}
SPECIAL = {"aya_vision", "gemma3", "paligemma2"}
"""Families of the zoo whose layers have a soft cap, or a window that is shorter than a prompt and its answers."""


@pytest.fixture
def seen(monkeypatch):
    """The caches that were made, and at each dropping the answers left to each prompt."""
    caches, left, make = [], [], cache.decode_cache
    monkeypatch.setattr(decoding, "decode_cache", lambda *args: caches.append(make(*args)) or caches[-1])
    monkeypatch.setattr(decoding, "DROP_SHARE", 0.0)
    for kind in KINDS.values():

        def keep(self, rows, keep=kind.keep):
            left.append(torch.bincount(self.prompt_of_row[rows], minlength=2).tolist())
            keep(self, rows)

        monkeypatch.setattr(kind, "keep", keep)
    return caches, left


def recorded(groups) -> torch.Tensor:
    return torch.tensor([lp for g in groups for r in g.rollouts for lp in r.logprobs])


def rolled(loaded, backend, *, seed=3, n=5, **settings):
    loaded.policy.model.generation_config.eos_token_id = STOPS
    attending(loaded, backend)
    return answered(loaded, mixed_prompts(loaded), n, seed=seed, max_new_tokens=14, temperature=0.9, **settings)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", KINDS)
@pytest.mark.parametrize(("seed", "n"), [(3, 5), (4, 1), (None, 2)], ids=["sampled", "one-each", "greedy"])
def test_they_record_the_log_probs_of_the_plain_forward(seen, family, backend, seed, n):
    loaded = tiny(family)
    groups = rolled(loaded, backend, seed=seed, n=n)
    caches, left = seen
    assert [type(c) for c in caches] == [KINDS[backend]]
    if seed is not None:
        assert any(0 in counts for counts in left)  # all answers to some prompt ended before others
    with torch.no_grad():
        expected = plain_logprobs(
            plain_model(loaded), groups, loaded.policy.suppressed, 0.9 if seed is not None else 1.0
        )
    torch.testing.assert_close(recorded(groups), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_write_the_same(seen, family):
    flash, dense = (rolled(tiny(family), backend) for backend in KINDS)
    assert [type(c) for c in seen[0]] == list(KINDS.values())
    texts = [[r.token_ids for g in groups for r in g.rollouts] for groups in (flash, dense)]
    assert texts[0] == texts[1]
    torch.testing.assert_close(recorded(flash), recorded(dense), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_half_precision_the_update_agrees(seen, family, record_property):
    loaded = tiny(family, dtype=torch.bfloat16)
    groups = rolled(loaded, "auto")
    assert [type(c) for c in seen[0]] == [FlashCache] and len(seen[1]) > 2
    with torch.no_grad():
        update, _ = loaded.policy(row_of(loaded, groups), 0.9)
    difference = float((recorded(groups) - update.float()).abs().mean())
    record_property("mean difference of log-probs", difference)
    assert 0 < difference < 0.02


@pytest.mark.parametrize("name", [*sorted(SPECIAL), "llava_next", "paligemma", "qwen3_5"])
def test_windows_and_soft_caps_take_products(tmp_path, name):
    entry = zoo.zoo()[name]
    entry.build(tmp_path)
    loaded = attending(zoo.load(tmp_path), "flash")
    with torch.no_grad():
        prefill = Prefill(loaded.policy, [loaded.family.encode(zoo.samples(entry)[0])])
        kind = type(decode_cache(prefill, 2, 7))
    assert kind is (DenseCache if name in SPECIAL else FlashCache)


def test_a_window_that_nothing_reaches_is_none(tmp_path):
    entry = zoo.zoo()["gemma3"]
    entry.build(tmp_path)
    loaded = attending(zoo.load(tmp_path), "flash")
    prompt = loaded.family.encode(zoo.samples(entry)[0])
    for short, kind in ((len(prompt.token_ids) + 7, FlashCache), (len(prompt.token_ids) + 6, DenseCache)):
        with torch.no_grad():
            prefill = Prefill(loaded.policy, [prompt])
        for rule in prefill.rules.values():
            object.__setattr__(rule, "window", short)
        assert type(decode_cache(prefill, 1, 7)) is kind


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_back_runs_the_token_again(family):
    loaded = attending(tiny(family), "flash")
    with torch.no_grad():
        prefill = Prefill(loaded.policy, mixed_prompts(loaded)[:2])
        decoding = Decoding(loaded.policy, prefill, 3, SamplingParams(max_new_tokens=6))
        assert isinstance(decoding.cache, FlashCache)
        first, second = torch.arange(20, 26), torch.arange(30, 36)
        decoding.run(first)
        before = decoding.logits
        decoding.run(second)
        expected = decoding.logits
        for other in (torch.arange(50, 56), second):  # what the step that is taken back wrote is written over
            decoding._rewind()
            decoding.run(other)
        assert torch.equal(decoding.logits, expected)
        for _ in range(2):
            decoding._rewind()
        decoding.run(first)
        assert torch.equal(decoding.logits, before)
