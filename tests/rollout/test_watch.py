"""What a watcher of the decoding sees: every token of every answer as it is written, and it may stop it."""

import pytest
from support import answered, mixed_prompts, tiny

LIMIT = 10


@pytest.fixture
def loaded():
    """A model of which every eighth token ends an answer, so that rows are dropped on the way."""
    found = tiny()
    found.policy.model.generation_config.eos_token_id = list(range(11, 400, 8))
    return found


@pytest.mark.parametrize("seed", [None, 3], ids=["greedy", "sampled"])
def test_a_watcher_sees_each_answer_grow_by_one_token_until_it_ends(loaded, seed):
    prompts, seen = mixed_prompts(loaded)[:2], []

    def watch(tokens, lengths):
        seen.append([tuple(row[:n]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)])

    watched = answered(loaded, prompts, 4, seed=seed, watch=watch, max_new_tokens=LIMIT)
    answers = [r.token_ids for g in watched for r in g.rollouts]
    again = answered(loaded, prompts, 4, seed=seed, max_new_tokens=LIMIT)
    assert answers == [r.token_ids for g in again for r in g.rollouts]
    assert seen == [[a[: min(len(a), t)] for a in answers] for t in range(1, max(map(len, answers)) + 1)]
    assert seed is None or len({len(a) for a in answers}) > 1


def test_what_a_watcher_raises_ends_the_decoding(loaded):
    seen = []

    def watch(tokens, lengths):
        seen.append(tokens.shape[1])
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        answered(loaded, mixed_prompts(loaded)[:1], 3, seed=1, watch=watch, max_new_tokens=LIMIT)
    assert seen == [1, 2]
