"""Batches ahead: the stream's order and state, dealing, errors where the batch is needed, and a clean end."""

import dataclasses
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_r1.data.mixture import SampleStream
from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.errors import DataError
from vlm_r1.runtime import prefetch
from vlm_r1.runtime.prefetch import Prefetcher, spare_core

BATCHES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=6)


@pytest.fixture(scope="module", autouse=True)
def _spare():
    """There is a core for the thread, whatever the machine; tests of the other case say so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefetch, "spare_core", lambda world: True)
        yield


@pytest.fixture
def no_core(monkeypatch):
    monkeypatch.setattr(prefetch, "spare_core", lambda world: False)


def stream() -> SampleStream[int]:
    return SampleStream([(2.0, range(10)), (1.0, range(100, 107))], seed=3)


def prefetcher(source=None, world=ALONE, prepare=lambda item: item, cost=float):
    return Prefetcher(source or stream(), world, cost, prepare)


@settings(deadline=None, max_examples=30)
@given(BATCHES)
def test_batches_are_the_streams_whether_they_were_asked_for_ahead_or_not(batches):
    plain = stream()
    with prefetcher(prepare=lambda item: 2 * item) as reader:
        for count, ahead in batches:
            before = plain.state_dict()
            if ahead:
                reader.prefetch(count)
            assert reader.state_dict() == before  # a checkpoint here continues with what was only prefetched
            assert reader.take(count) == list(enumerate(2 * item for item in plain.take(count)))
            assert reader.state_dict() == plain.state_dict()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_whole_batches_are_dealt_by_cost(size, count, ahead):
    shares = []
    for rank in range(size):
        with prefetcher(world=World(rank=rank, size=size)) as reader:
            if ahead:
                reader.prefetch(count)
            shares.append(reader.take(count))
    assert sorted(pair for share in shares for pair in share) == list(enumerate(stream().take(count)))
    totals = [sum(item for _, item in share) for share in shares]
    assert max(totals) - min(totals) <= max(stream().take(count), default=0)  # greedy: no gap wider than one item


def test_numbers_go_on_and_loads_count():
    with prefetcher(world=World(rank=0, size=2)) as reader:
        reader.take(3)
        assert reader.take(2, 3, [1e6, 0.0]) == []
    with prefetcher(world=World(rank=1, size=2)) as reader:
        reader.take(3)
        assert [number for number, _ in reader.take(2, 3, [1e6, 0.0])] == [3, 4]


def test_it_works_while_the_step_runs():
    started, go_on = threading.Event(), threading.Event()

    def prepare(item):
        started.set()
        assert go_on.wait(10)
        return threading.current_thread().name

    with prefetcher(prepare=prepare) as reader:
        reader.prefetch(2)
        assert started.wait(10)  # nobody asked for the batch yet
        go_on.set()
        assert all(name.startswith("prefetch") for _, name in reader.take(2))


def test_an_error_is_raised_where_the_batch_is_needed():
    first, second = stream().take(3), stream().take(6)[3:]

    def prepare(item):
        if item == second[1]:
            raise DataError(f"sample {item}: cannot be read")
        return item

    assert second[1] not in first
    with prefetcher(prepare=prepare) as reader:
        assert [item for _, item in reader.take(3)] == first
        reader.prefetch(3)
        time.sleep(0.05)
        with pytest.raises(DataError, match=f"^sample {second[1]}: cannot be read$"):
            reader.take(3)


def test_an_error_of_the_source_too():
    class Broken(list):
        def __getitem__(self, index):
            raise DataError("row 7: is no object")

    with prefetcher(SampleStream([(1.0, Broken([1]))], seed=0)) as reader:
        reader.prefetch(1)
        with pytest.raises(DataError, match="row 7: is no object"):
            reader.take(1)


def test_the_end_of_a_run_drops_what_nobody_asks_for():
    prepared, started = [], threading.Event()

    def prepare(item):
        started.set()
        time.sleep(0.02)
        prepared.append(item)

    with pytest.raises(KeyboardInterrupt), prefetcher(prepare=prepare) as reader:
        reader.prefetch(100)
        assert started.wait(10)
        raise KeyboardInterrupt
    assert len(prepared) < 50
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_an_interrupt_while_a_batch_is_waited_for_ends_it_too():
    @dataclasses.dataclass
    class Interrupted(World):
        def __post_init__(self):
            self.beat = self._interrupt

        def _interrupt(self, doing="", allow=0.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), prefetcher(world=Interrupted()) as reader:
        reader.take(5)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_only_the_main_thread_beats():
    beats = []
    world = World(beat=lambda doing="", allow=0.0: beats.append((doing, threading.current_thread().name)))
    with prefetcher(world=world) as reader:
        reader.prefetch(3)
        reader.take(3)
    assert beats == [("reading samples", threading.main_thread().name)] * 3


def test_operators_of_the_thread_run_on_one_core():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with prefetcher(prepare=lambda item: torch.get_num_threads()) as reader:
            assert [n for _, n in reader.take(2)] == [1, 1]
            assert torch.get_num_threads() == 3
            other = []
            thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert other == [3]  # and those of any other thread on as many as before
    finally:
        torch.set_num_threads(before)


def test_without_a_core_the_same_items_are_prepared_where_they_are_taken(no_core):
    ready = {}
    for ahead in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefetch, "spare_core", lambda world, ahead=ahead: ahead)
            prepared, taken, states = [], [], []

            def prepare(item, prepared=prepared):
                prepared.append(threading.current_thread() is threading.main_thread())
                return 2 * item

            with prefetcher(prepare=prepare) as reader:
                assert reader.ahead == ahead
                for count in (3, 0, 5, 1):
                    reader.prefetch(count)
                    states.append(reader.state_dict())
                    taken.append(reader.take(count))
                    states.append(reader.state_dict())
            assert prepared == [not ahead] * 9
        ready[ahead] = (taken, states)
    assert ready[True] == ready[False]


def test_without_a_core_nothing_happens_before_it_is_needed(no_core):
    source, prepared = stream(), []
    before, threads = source.state_dict(), threading.active_count()
    with prefetcher(source, prepare=prepared.append) as reader:
        reader.prefetch(4)
        assert not prepared and source.state_dict() == before and threading.active_count() == threads
        assert len(reader.take(4)) == len(prepared) == 4


def test_without_a_core_items_are_dealt_with_loads_too(no_core):
    for rank, expected in ((0, []), (1, [3, 4])):
        with prefetcher(world=World(rank=rank, size=2)) as reader:
            reader.take(3)
            reader.prefetch(2)
            assert [number for number, _ in reader.take(2, 3, [1e6, 0.0])] == expected


def test_without_a_core_there_is_a_sign_of_life_before_each_item(no_core):
    events = []
    world = World(beat=lambda doing="", allow=0.0: events.append(doing))
    with prefetcher(world=world, prepare=lambda item: events.append("prepared")) as reader:
        reader.take(2)
    assert events == ["reading samples", "prepared"] * 2


def test_without_a_core_errors_and_interrupts_end_the_batch(no_core):
    asked, items = [], stream().take(4)

    def prepare(item):
        asked.append(item)
        if item == items[1]:
            raise DataError(f"sample {item}: cannot be read")
        if item == items[2]:
            raise KeyboardInterrupt

    source = stream()
    with prefetcher(source, prepare=prepare) as reader:
        for _ in range(2):  # asking again draws nothing more
            with pytest.raises(DataError, match=f"^sample {items[1]}: cannot be read$"):
                reader.take(4)
        assert asked == items[:2] and source.state_dict()["drawn"] == 4
        assert reader.state_dict()["drawn"] == 0
    asked.clear()
    with pytest.raises(KeyboardInterrupt), prefetcher(source := stream(), prepare=prepare) as reader:
        source.take(2)
        reader.take(2)
    assert asked == items[2:3]


def test_a_core_is_free_where_cores_are_more_than_the_threads_of_operators(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8))
    for local, threads, free in ((1, 7, True), (1, 8, False), (2, 3, True), (2, 4, False), (8, 1, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert spare_core(World(rank=0, size=local, local_size=local)) == free


def test_on_a_gpu_it_is_always_ahead(no_core):
    reader = prefetcher(world=World(device=torch.device("cuda")))
    reader.__exit__()
    assert reader.ahead
