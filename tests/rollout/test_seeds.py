"""An answer is a function of the weights, the seed, its prompt's number and its own: not of what else is sampled."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import answered, mixed_prompts, recipe, tiny

from vlm_r1.config import RolloutConfig
from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.records import Prompt, Sample, SamplingParams, Truth
from vlm_r1.rl import loop
from vlm_r1.rollout import concurrency, decoding
from vlm_r1.rollout.concurrency import Limits, cut, kv_bytes_per_token, limits_of
from vlm_r1.rollout.sampling import uniforms
from vlm_r1.runtime.runlog import read_rollouts

G, LIMIT = 5, 10


@pytest.fixture(scope="module")
def loaded():
    """A model of which every eighth token ends an answer, so that rows are dropped on the way."""
    found = tiny()
    found.policy.model.generation_config.eos_token_id = list(range(11, 400, 8))
    return found


@pytest.fixture(scope="module")
def expected(loaded):
    """What everything at once gives: prompt's number -> its answers."""
    found = tokens(answered(loaded, mixed_prompts(loaded), G, seed=7, max_new_tokens=LIMIT))
    assert len({len(ids) for row in found.values() for ids in row}) > 3
    return found


def tokens(groups) -> dict[int, list[tuple[int, ...]]]:
    return {g.prompt.number: [r.token_ids for r in g.rollouts] for g in groups}


@pytest.mark.parametrize("sequences", [1, 2, 3, 4, 5, 6, 10, 11, 15, 20, 99])
def test_pieces_of_any_size_give_the_same_answers(loaded, expected, sequences):
    limits = {"max_sequences": sequences}
    groups = answered(loaded, mixed_prompts(loaded), G, seed=7, max_new_tokens=LIMIT, limits=limits)
    assert tokens(groups) == expected
    assert [len(g.rollouts) for g in groups] == [G] * 4


@pytest.mark.parametrize("gigabytes", [1e-9, 1e-5, 1e-4])
def test_less_memory_gives_the_same_answers(loaded, expected, gigabytes):
    limits = {"kv_cache_gb": gigabytes}
    found = answered(loaded, mixed_prompts(loaded), G, seed=7, max_new_tokens=LIMIT, limits=limits)
    assert tokens(found) == expected


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (2, 0, 3, 1), (1,), (3, 0)], ids=str)
def test_neither_the_order_of_prompts_nor_what_else_is_asked_counts(loaded, expected, order):
    prompts = mixed_prompts(loaded)
    found = answered(loaded, [prompts[n] for n in order], G, seed=7, max_new_tokens=LIMIT)
    assert tokens(found) == {n: expected[n] for n in order}


def test_fewer_answers_are_the_first_of_more(loaded, expected):
    found = answered(loaded, mixed_prompts(loaded), 2, seed=7, max_new_tokens=LIMIT)
    assert tokens(found) == {number: row[:2] for number, row in expected.items()}


@pytest.mark.parametrize("share", [0.0, 2.0], ids=["dropped-at-once", "never-dropped"])
def test_when_finished_rows_are_dropped_does_not_count(monkeypatch, loaded, expected, share):
    monkeypatch.setattr(decoding, "DROP_SHARE", share)
    assert tokens(answered(loaded, mixed_prompts(loaded), G, seed=7, max_new_tokens=LIMIT)) == expected


def test_another_seed_or_number_gives_other_answers(loaded, expected):
    prompts = mixed_prompts(loaded)
    other = tokens(answered(loaded, prompts, G, seed=8, max_new_tokens=LIMIT))
    assert all(other[number] != row for number, row in expected.items())
    moved = [replace(prompt, number=prompt.number + 100) for prompt in prompts]
    found = tokens(answered(loaded, moved, G, seed=7, max_new_tokens=LIMIT))
    assert all(found[number + 100] != row for number, row in expected.items())
    assert all(len(set(row)) > 1 for row in expected.values())  # answers of a group differ


def test_greedy_answers_need_no_numbers(loaded):
    prompts = mixed_prompts(loaded)
    first = answered(loaded, prompts, 2, seed=None, max_new_tokens=LIMIT)
    again = answered(loaded, [replace(p, number=9) for p in prompts], 1, seed=None, max_new_tokens=LIMIT)
    for group, one in zip(first, again, strict=True):
        assert [r.token_ids for r in group.rollouts] == [one.rollouts[0].token_ids] * 2


def drawn(number: int, answer: int, seed: tuple[int, ...] = (0, 3), n: int = 64) -> torch.Tensor:
    prompts = [prompt_of(5, number)]
    found = uniforms(prompts, answer, 1, SamplingParams(max_new_tokens=n, seed=seed))
    return found[0]


def test_the_random_numbers_of_an_answer_are_its_own_and_even():
    rows = [drawn(number, answer, (0, step)) for step in range(4) for number in range(4) for answer in range(16)]
    everything = torch.stack(rows)
    assert everything.dtype == torch.double and float(everything.min()) >= 0 and float(everything.max()) < 1
    assert len(everything.flatten().unique()) == everything.numel()
    assert abs(float(everything.mean()) - 0.5) < 5 * (1 / 12) ** 0.5 / everything.numel() ** 0.5
    assert float(torch.corrcoef(everything).fill_diagonal_(0).abs().max()) < 0.6
    # digits of the names run into each other without a separator: (1, 11) is not (11, 1)
    assert not torch.equal(drawn(1, 11), drawn(11, 1)) and not torch.equal(drawn(1, 1, (1, 0)), drawn(1, 1, (10,)))
    torch.testing.assert_close(drawn(2, 3, n=64)[:7], drawn(2, 3, n=7))  # a longer limit adds numbers


def prompt_of(length: int, number: int) -> Prompt:
    return Prompt(
        sample=Sample(id=str(number), question="", truth=Truth()),
        token_ids=(0,) * length,
        positions=torch.zeros(3, length),
        next_position=length,
        images=(),
        box_map=None,
        number=number,
    )


@settings(deadline=None, max_examples=300)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=9),
    n=st.integers(1, 9),
    new=st.integers(1, 20),
    sequences=st.none() | st.integers(1, 30),
    room=st.integers(0, 400),
    per_token=st.integers(1, 3),
)
def test_pieces_cover_every_answer_once_within_the_limits(lengths, n, new, sequences, room, per_token):
    prompts = [prompt_of(length, number) for number, length in enumerate(lengths)]
    limits = Limits(sequences=sequences, kv_bytes=room, per_token=per_token)
    pieces = list(cut(prompts, n, new, limits))
    covered = [
        (prompt.number, answer)
        for piece in pieces
        for prompt in piece.prompts
        for answer in range(piece.first, piece.first + piece.count)
    ]
    assert covered == [(number, answer) for number in range(len(lengths)) for answer in range(n)]
    for piece in pieces:
        answers = len(piece.prompts) * piece.count
        tokens_held = sum(len(p.token_ids) for p in piece.prompts) + answers * new
        fits = (sequences is None or answers <= sequences) and tokens_held * per_token <= room
        assert fits or answers == 1
        assert piece.count == n or len(piece.prompts) == 1
        assert piece.prompts and piece.count >= 1


def test_nothing_is_cut_where_everything_fits_and_groups_stay_whole_where_they_fit():
    prompts = [prompt_of(10, number) for number in range(4)]
    everything = Limits(sequences=None, kv_bytes=4 * (10 + 3 * 5), per_token=1)
    assert [len(piece.prompts) for piece in cut(prompts, 3, 5, everything)] == [4]
    pairs = Limits(sequences=7, kv_bytes=10**6, per_token=1)
    assert [(len(p.prompts), p.count) for p in cut(prompts, 3, 5, pairs)] == [(2, 3), (2, 3)]
    split = Limits(sequences=2, kv_bytes=10**6, per_token=1)
    assert [(p.first, p.count) for p in cut(prompts[:1], 5, 5, split)] == [(0, 2), (2, 2), (4, 1)]


def test_limits_come_from_the_recipe_or_the_machine(monkeypatch):
    policy = tiny().policy
    # keys and values of 2 layers, 2 heads of 16, in float32
    assert kv_bytes_per_token(policy) == 2 * 2 * 2 * 16 * 4
    named = limits_of(policy, RolloutConfig(max_sequences=3, kv_cache_gb=2.0), ALONE)
    assert (named.sequences, named.kv_bytes) == (3, 2 * 2**30)
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}  # a machine of 4 GiB
    monkeypatch.setattr(concurrency.os, "sysconf", pages.__getitem__)
    assert limits_of(policy, RolloutConfig(), ALONE).kv_bytes == 2**30
    assert limits_of(policy, RolloutConfig(), World(local_size=4)).kv_bytes == 2**28


def test_a_runs_first_answers_do_not_depend_on_how_they_are_cut(model_folder, tmp_path):
    """Seeds are made of the run's seed, the step and the prompt's number in it, through the whole loop."""
    found = {}
    for name, limits in (("whole", {}), ("cut", {"max_sequences": 2})):
        run = {"steps": 1, "save_every": 1, "log_rollouts_every": 1, "seed": 5}
        loop.train(recipe(model_folder, tmp_path / name, run=run, rollout={"max_new_tokens": 6, **limits}))
        found[name] = [(row["group"], row["sample_id"], row["token_ids"]) for row in read_rollouts(tmp_path / name, 1)]
    assert found["whole"] == found["cut"] and len(found["whole"]) == 6


def test_shuffled_prompts_of_many_answers_in_random_pieces(loaded):
    prompts = mixed_prompts(loaded)
    expected = tokens(answered(loaded, prompts, 8, seed=1, max_new_tokens=6))
    rng = random.Random(0)
    for _ in range(6):
        chosen = rng.sample(prompts, rng.randint(1, 4))
        limits = {"max_sequences": rng.randint(1, 33)}
        found = tokens(answered(loaded, chosen, 8, seed=1, max_new_tokens=6, limits=limits))
        assert found == {p.number: expected[p.number] for p in chosen}
