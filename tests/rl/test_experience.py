"""What falls to a process of a step, how answers are judged, and what each token weighs in the whole step."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Scripted, made_up, mixed_prompts, noise_image, sample, tiny

from vlm_r1.config import RewardConfig, ScenesSource
from vlm_r1.data.mixture import SampleStream
from vlm_r1.data.scenes import load_scenes
from vlm_r1.distributed.processes import ALONE, World
from vlm_r1.records import Answer, SamplingParams
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.rl.advantage import mean_std
from vlm_r1.rl.algorithms import ALGORITHMS
from vlm_r1.rl.experience import Experience, batch_of, deal, judge
from vlm_r1.runtime.prefetch import Prefetcher

LOADED = tiny()
RUBRIC = build_rubric(RewardConfig(parts={"format": 1.0}, shadow=["repetition"]))


@dataclasses.dataclass
class OneOf(World):
    """One of several processes, of which the test knows what the others would say."""

    others: tuple[float, ...] = ()
    elsewhere: tuple[float, ...] = ()

    def gather(self, value):
        return [value if rank == self.rank else other for rank, other in enumerate(self.others)]

    def sum(self, *values):
        return [value + more for value, more in zip(values, self.elsewhere, strict=True)]


def stream(samples=None) -> SampleStream:
    return SampleStream([(1.0, samples or load_scenes(ScenesSource(n=40)))], seed=0)


def dealt(source: SampleStream, count: int, world: World, drawn: int = 0, held: float = 0.0):
    with Prefetcher(source, world, LOADED.family.expected_tokens, LOADED.family.encode) as batches:
        return deal(batches, count, world, drawn, held)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(0, 7), st.integers(1, 9), st.data())
def test_every_prompt_falls_to_one_process_under_its_number_in_the_step(size, count, drawn, data):
    held = tuple(float(v) for v in data.draw(st.lists(st.integers(0, 500), min_size=size, max_size=size)))
    alone = dealt(stream(), count, ALONE, drawn)
    assert [prompt.number for prompt in alone] == list(range(drawn, drawn + count))
    shares = []
    for rank in range(size):
        world = OneOf(rank=rank, size=size, others=held)
        mine = dealt(stream(), count, world, drawn, held[rank])
        assert [p.number for p in mine] == sorted(p.number for p in mine)
        shares += mine
    assert sorted((p.number, p.sample.id) for p in shares) == [(p.number, p.sample.id) for p in alone]


def test_work_is_dealt_by_the_size_of_images_and_by_what_a_process_holds():
    large = sample("q", noise_image(640, 640), id="large")
    small = [sample("q", noise_image(64, 64), id=str(i)) for i in range(3)]
    shares = []
    for rank in (0, 1):
        world = OneOf(rank=rank, size=2, others=(0.0, 0.0))
        shares.append({p.sample.id for p in dealt(stream([large, *small]), 4, world)})
    assert sorted(shares, key=len) == [{"large"}, {"0", "1", "2"}]
    world = OneOf(rank=0, size=2, others=(1e6, 0.0))
    assert dealt(stream(small), 3, world, 4, 1e6) == []


def test_every_process_draws_the_same_samples_from_the_stream():
    states = []
    for rank in (0, 1, 2):
        source = stream()
        dealt(source, 5, OneOf(rank=rank, size=3, others=(0.0,) * 3))
        states.append(source.state_dict())
    assert states[0] == states[1] == states[2] and states[0]["drawn"] == 5


def judged(algorithm: str, texts: list[list[str]], lengths: list[list[int]]) -> Experience:
    """Answers of these texts and lengths, of prompts of which each is worth its text's number."""
    engine = Scripted(lambda prompt, answer: texts[prompt.number][answer])
    prompts = mixed_prompts(LOADED)[: len(texts)]
    sampling = SamplingParams(max_new_tokens=10, seed=(0,))
    groups = list(engine.generate(prompts, sampling, n=3))
    pairs = [zip(*row, strict=True) for row in zip(texts, lengths, strict=True)]
    answers = [[Answer(raw=text, n_tokens=n) for text, n in row] for row in pairs]
    return judge(groups, answers, RUBRIC, ALGORITHMS[algorithm], 3)


def test_overlong_shaping_changes_advantages_and_not_the_reported_reward():
    found = judged("dapo", [["", "", ""]], [[10, 9, 4]])
    assert found.rewards_PG.tolist() == [[0.0, 0.0, 0.0]]
    # half of the limit of 10 is soft: 10 tokens cost 1, 9 cost 0.5 x ..., 4 cost nothing
    torch.testing.assert_close(found.advantages_PG, mean_std(torch.tensor([[0.0, 0.5, 1.0]])))
    plain = judged("grpo", [["", "", ""]], [[10, 9, 4]])
    assert not plain.advantages_PG.any()


def test_informative_groups_keep_all_that_belongs_to_them():
    found = judged("grpo", [["", "", ""], ["", "x", ""]], [[1, 1, 1], [1, 2, 3]])
    found = dataclasses.replace(found, advantages_PG=torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]))
    kept = found.informative()
    assert kept.groups == found.groups[1:] and kept.answers == found.answers[1:]
    assert kept.scores == found.scores[1:] and kept.shadows == found.shadows[1:] and len(kept.shadows[0]) == 3
    assert kept.advantages_PG.tolist() == [[1.0, 0.0, -1.0]] and kept.rewards_PG.shape == (1, 3)
    twice = Experience.empty(3).joined(found).joined(kept)
    assert [g.prompt.number for g in twice.groups] == [0, 1, 1] and twice.rewards_PG.shape == (3, 3)
    assert twice.lengths_PG.tolist() == [[2, 2, 2]] * 3


LENGTHS = ((2, 4, 5), (1, 3, 10))


def experience() -> Experience:
    """Two groups of made-up answers of which only the second teaches."""
    prompts = mixed_prompts(LOADED)
    groups = [made_up(LOADED, prompt, lengths) for prompt, lengths in zip(prompts, LENGTHS, strict=False)]
    advantages = torch.tensor([[0.0, 0.0, 0.0], [1.0, -0.5, -0.5]])
    return Experience(groups=groups, rewards_PG=torch.zeros(2, 3), advantages_PG=advantages)


@pytest.mark.parametrize("keep_all", [False, True], ids=["informative", "all"])
@pytest.mark.parametrize(
    ("world", "answers", "tokens"),
    [(ALONE, 6, 25), (OneOf(size=2, elsewhere=(3.0, 15.0)), 9, 40)],
    ids=["alone", "one-of-two"],
)
def test_token_weights_count_the_answers_of_all_groups_and_processes(world, answers, tokens, keep_all):
    rows = LENGTHS if keep_all else LENGTHS[1:]
    lengths = torch.tensor(rows).flatten()
    expected = {
        "grpo": 1 / (answers * lengths),
        "dapo": torch.full(lengths.shape, 1 / tokens),
        "rloo": torch.full(lengths.shape, 1 / answers),
        "dr_grpo": torch.full(lengths.shape, 1 / (answers * 12)),
    }
    for name, weights in expected.items():
        batch = batch_of(experience(), ALGORITHMS[name], world, 12, keep_all=keep_all)
        torch.testing.assert_close(batch.weights_B, weights)
        assert len(batch.prefix_groups) == len(rows) and [len(x) for x in batch.sampler_B] == lengths.tolist()


def test_a_process_without_a_prompt_has_an_empty_batch_and_takes_part():
    world = OneOf(size=2, elsewhere=(6.0, 25.0))
    batch = batch_of(Experience.empty(3), ALGORITHMS["grpo"], world, 12, keep_all=True)
    assert batch.prefix_groups == () and batch.n_answer_tokens == 0 and batch.cut(100) == []
    empty = judge([], [], RUBRIC, ALGORITHMS["dapo"], 3)
    assert empty.rewards_PG.shape == empty.advantages_PG.shape == (0, 3) and empty.groups == []
