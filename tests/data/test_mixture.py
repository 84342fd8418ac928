import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_r1.data.mixture import SampleStream
from vlm_r1.errors import CheckpointError, DataError
from vlm_r1.records import Sample, Truth


def source(name: str, n: int) -> list[Sample]:
    return [Sample(id=f"{name}{i}", question="q", truth=Truth(text="a"), task="text") for i in range(n)]


def ids(samples):
    return [sample.id for sample in samples]


def test_each_epoch_holds_every_sample_once_in_a_new_order():
    stream = SampleStream([(1.0, source("a", 20))], seed=3)
    epochs = [ids(stream.take(20)) for _ in range(3)]
    everything = sorted(f"a{i}" for i in range(20))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_seed_decides_the_order():
    sources = [(1.0, source("a", 9)), (2.0, source("b", 5))]
    first, again, other = (ids(SampleStream(sources, seed=seed).take(40)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_weights_are_shares():
    stream = SampleStream([(3.0, source("a", 7)), (1.0, source("b", 11))], seed=0)
    counts = Counter(sample.id[0] for sample in stream.take(4000))
    # Standard deviation of the share is sqrt(0.75 * 0.25 / 4000) = 0.0068: four of them.
    assert counts["a"] / 4000 == pytest.approx(0.75, abs=0.028)


def test_within_a_mixture_no_sample_comes_twice_before_all_came_once():
    stream = SampleStream([(1.0, source("a", 6)), (1.0, source("b", 50))], seed=0)
    drawn = [sample.id for sample in stream.take(400) if sample.id.startswith("a")]
    for start in range(0, len(drawn) - 5, 6):
        assert len(set(drawn[start : start + 6])) == 6


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    before=st.integers(0, 40),
    after=st.integers(0, 40),
    seed=st.integers(0, 2**32),
)
def test_resume_equals_never_having_stopped(sizes, before, after, seed):
    sources = [(1.0 + i, source("abc"[i], n)) for i, n in enumerate(sizes)]
    whole = ids(SampleStream(sources, seed).take(before + after))
    stream = SampleStream(sources, seed)
    stream.take(before)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = SampleStream(sources, seed)
    resumed.load_state_dict(state)
    assert ids(resumed.take(after)) == whole[before:]


def test_the_order_does_not_depend_on_how_it_is_cut():
    sources = [(1.0, source("a", 9)), (2.0, source("b", 5))]
    stream = SampleStream(sources, seed=5)
    assert ids(stream.take(3) + stream.take(30)) == ids(SampleStream(sources, seed=5).take(33))


def test_the_state_is_small_however_much_was_drawn():
    stream = SampleStream([(1.0, source("a", 1000))], seed=0)
    stream.take(2500)
    assert stream.state_dict() == {"seed": 0, "drawn": 2500, "positions": [2500], "sizes": [1000]}


def test_a_state_of_other_data_is_refused():
    state = SampleStream([(1.0, source("a", 4))], seed=0).state_dict()
    with pytest.raises(CheckpointError, match=r"sizes is \[4\] and this run's is \[5\]"):
        SampleStream([(1.0, source("a", 5))], seed=0).load_state_dict(state)
    with pytest.raises(CheckpointError, match="seed is 0 and this run's is 1"):
        SampleStream([(1.0, source("a", 4))], seed=1).load_state_dict(state)


def test_nothing_to_draw_from_is_said():
    with pytest.raises(DataError, match=r"data\.train"):
        SampleStream([], seed=0)
    with pytest.raises(DataError, match="source 2"):
        SampleStream([(1.0, source("a", 4)), (1.0, [])], seed=0)
