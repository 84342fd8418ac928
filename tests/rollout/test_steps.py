"""What a decoding step makes the host wait for, and steps that are recorded and replayed.

A CPU shows operators that hand a value of a device to the host. It has no recordings: a fake one notes the step that
runs within it and does it when it is replayed.
"""

import contextlib
import warnings

import pytest
import torch
from support import FAMILIES, attending, mixed_prompts, tiny
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from vlm_r1.models.flash import Runs
from vlm_r1.records import SamplingParams
from vlm_r1.rollout import decoding
from vlm_r1.rollout.cache import FlashCache, Prefill
from vlm_r1.rollout.concurrency import Piece
from vlm_r1.rollout.decoding import Decoding
from vlm_r1.rollout.graphs import StepGraph
from vlm_r1.rollout.lean import LeanLayers
from vlm_r1.rollout.native import NativeEngine

WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "bincount",
    "repeat_interleave.Tensor",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
"""Operators of aten whose result, or its size, the host has to know."""


class Waits(TorchDispatchMode):
    """Notes such operators, and boolean masks as indices, which stand for their places."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if name in WAITING or name.split(".")[0] in WAITING:
            self.found.append(name)
        if name.startswith(("index.", "index_put")) and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        ):
            self.found.append(f"{name} by a mask")
        return func(*args, **(kwargs or {}))


def waits_of_decoding(loaded, monkeypatch, tokens, **sampling):
    """What the host waits for between the set-up of decoding and the reading of its answers, and the rollouts."""
    monkeypatch.setattr(decoding, "look_every", lambda device: 8)
    prompts, waits, found, outer = mixed_prompts(loaded), Waits(), [], contextlib.ExitStack()
    init, finish = Decoding.__init__, decoding._rollouts

    def start(self, *args, **kwargs):
        init(self, *args, **kwargs)
        assert isinstance(self.cache, FlashCache) and isinstance(self.lean, LeanLayers)
        waits.found.clear()
        outer.enter_context(waits)

    def end(*args):
        outer.close()
        found.extend(waits.found)
        return finish(*args)

    of, tolist = Runs.of, torch.Tensor.tolist

    def on_the_host(lengths):
        with _disable_current_modes():
            return of(lengths)

    monkeypatch.setattr(Runs, "of", on_the_host)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: waits.found.append("tolist") or tolist(x))
    monkeypatch.setattr(Decoding, "__init__", start)
    monkeypatch.setattr(decoding, "_rollouts", end)
    settings = SamplingParams(max_new_tokens=tokens, **sampling)
    with torch.no_grad():
        prefill = Prefill(loaded.policy, prompts)
        piece, stop = Piece(prompts=tuple(prompts), first=0, count=3), NativeEngine(loaded).stopping(["</answer>"])
        rollouts = decoding.decode(loaded, piece, prefill, settings, stop)
    return found, rollouts


FILTERS = [{"seed": None}, {"seed": (1,)}, {"seed": (1,), "top_k": 9, "top_p": 0.9, "min_p": 0.01}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", FILTERS, ids=["greedy", "sampled", "filtered"])
def test_the_host_looks_once_in_eight_tokens(monkeypatch, family, sampling):
    loaded = attending(tiny(family), "flash")
    loaded.policy.model.generation_config.eos_token_id = loaded.policy.suppressed.tolist()  # never written: nobody ends
    monkeypatch.setattr(type(loaded.tokenizer), "eos_token_id", loaded.policy.suppressed.tolist()[0], raising=False)
    found, rollouts = waits_of_decoding(loaded, monkeypatch, 21, **sampling)
    assert {len(r.token_ids) for r in rollouts} == {21}
    assert found == ["_local_scalar_dense.default"] * (21 // 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_rows_waits_only_where_the_host_looks(monkeypatch, family):
    loaded = attending(tiny(family), "flash")
    loaded.policy.model.generation_config.eos_token_id = list(range(11, 400, 16))
    monkeypatch.setattr(decoding, "DROP_SHARE", 0.0)
    kept, keep = [], FlashCache.keep
    monkeypatch.setattr(FlashCache, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    found, rollouts = waits_of_decoding(loaded, monkeypatch, 34, seed=(1,))
    looks = min(-(-max(len(r.token_ids) for r in rollouts) // 8), 33 // 8)
    assert len(kept) > 1 and found.count("_local_scalar_dense.default") == looks
    dropping = ["nonzero.default", "bincount.default", "tolist"]  # the rows that stay, and how many of each prompt
    assert sorted(set(found)) == sorted({"_local_scalar_dense.default", *dropping})
    assert all(found.count(name) == len(kept) for name in dropping)


class FakeGraph:
    """A recording: what `step` does on what it was given, once more, into what it returned."""

    current = None

    def __init__(self):
        self.again, self.replays = None, 0

    def replay(self):
        self.replays += 1
        self.again()


@contextlib.contextmanager
def fake_capture(graph):
    FakeGraph.current = graph
    try:
        yield
    finally:
        FakeGraph.current = None


def recordable(step, spoil=lambda logits: logits):
    """A step that does nothing but be noted while a recording is made, as kernels in a capture."""

    def run(tokens):
        if FakeGraph.current is None:
            return step(tokens)
        logits = torch.full((len(tokens), WIDTH), torch.nan)
        FakeGraph.current.again = lambda: logits.copy_(spoil(step(tokens)))
        return logits

    return run


WIDTH = 3


class Counter:
    """Logits from a token, and from a state that each step moves on."""

    def __init__(self):
        self.at, self.ran = torch.zeros(1), 0

    def step(self, tokens):
        self.ran += 1
        self.at += 1
        return torch.stack([tokens * 1.0, tokens + 10 * self.at, self.at.expand(len(tokens))], 1)

    def rewind(self):
        self.at -= 1


@pytest.fixture
def graphs(monkeypatch):
    """The recordings that are made."""
    made = []
    monkeypatch.setattr(StepGraph, "broken", False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(FakeGraph()) or made[-1])
    monkeypatch.setattr(torch.cuda, "graph", fake_capture)
    return made


def tokens_of(*rows):
    return [torch.arange(5 * i, 5 * i + n) for i, n in enumerate(rows)]


def assert_steps(graph, batches, plain=None):
    plain = plain or Counter()
    for tokens in batches:
        assert torch.equal(graph(tokens), plain.step(tokens))
    return plain


def test_a_step_is_recorded_at_its_second_call_and_replayed(graphs):
    counter = Counter()
    graph = StepGraph(recordable(counter.step), counter.rewind)
    first, *others = tokens_of(4, 4, 4, 4)
    plain = assert_steps(graph, [first])
    assert not graphs and counter.ran == 1
    plain = assert_steps(graph, others[:1], plain)
    assert [g.replays for g in graphs] == [2]  # one to compare, and the step
    assert_steps(graph, others[1:], plain)
    assert [g.replays for g in graphs] == [4] and float(counter.at) == 4


def test_fewer_rows_are_recorded_again_and_not_compared_again(graphs):
    counter = Counter()
    graph = StepGraph(recordable(counter.step), counter.rewind)
    assert_steps(graph, tokens_of(4, 4, 4, 2, 2, 2, 1))
    assert [g.replays for g in graphs] == [3, 2]
    assert float(counter.at) == 7


def test_the_callers_tokens_are_not_written(graphs):
    counter, batches = Counter(), tokens_of(3, 3, 3)
    kept = [b.clone() for b in batches]
    assert_steps(StepGraph(recordable(counter.step), counter.rewind), batches)
    assert all(torch.equal(a, b) for a, b in zip(kept, batches, strict=True))


@pytest.mark.parametrize("spoil", [lambda x: x * 1.1, lambda x: x * torch.nan], ids=["off", "nan"])
def test_a_replay_that_is_off_is_given_up_once_for_all(graphs, spoil):
    counter = Counter()
    graph = StepGraph(recordable(counter.step, spoil), counter.rewind)
    with pytest.warns(UserWarning, match=r"rollout.cuda_graphs: a replayed decoding step is off by .*%") as warned:
        plain = assert_steps(graph, tokens_of(4, 4))
    assert len(warned) == 1 and len(graphs) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_steps(graph, tokens_of(4, 2, 2, 2), plain)
        other = Counter()
        assert_steps(StepGraph(recordable(other.step, spoil), other.rewind), tokens_of(3, 3, 3))
    assert len(graphs) == 1


def test_what_cannot_be_recorded_is_given_up_once_for_all(graphs):
    counter = Counter()

    def step(tokens):
        if FakeGraph.current is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return counter.step(tokens)

    graph = StepGraph(step, counter.rewind)
    match = r"cannot be recorded \(operation not permitted when stream is capturing\); steps run one by one"
    with pytest.warns(UserWarning, match=match) as warned:
        assert_steps(graph, tokens_of(4, 4, 4, 2, 2, 2))
    assert len(warned) == 1 and len(graphs) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_by_recordings_is_decoding(graphs, monkeypatch, family):
    """With rows dropped on the way, over the cache and the lean layers of a model."""
    loaded = attending(tiny(family), "flash")
    monkeypatch.setitem(globals(), "WIDTH", loaded.policy.model.get_output_embeddings().weight.shape[0])
    forward = Decoding._forward
    monkeypatch.setattr(Decoding, "_forward", lambda self, tokens: recordable(lambda t: forward(self, t))(tokens))
    logits = {}
    for by_graphs in (False, True):
        with torch.no_grad():
            prefill = Prefill(loaded.policy, mixed_prompts(loaded)[:2])
            settings = SamplingParams(max_new_tokens=12)
            decoding = Decoding(loaded.policy, prefill, 3, settings, graphs=by_graphs)
            logits[by_graphs] = [decoding.logits.clone()]
            for tokens in tokens_of(6, 6, 6, 6, 2, 2, 2):
                if len(tokens) < len(decoding.position):
                    decoding.keep(torch.tensor([1, 4]))
                decoding.run(tokens + 20)
                logits[by_graphs].append(decoding.logits.clone())
    assert [g.replays for g in graphs] == [4, 2]
    assert all(torch.equal(a, b) for a, b in zip(*logits.values(), strict=True))
