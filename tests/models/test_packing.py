"""Rows and their layout: hand-written small cases, and invariants of cutting by a token budget."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_r1.models.layout import make_layout, pad_index
from vlm_r1.models.packing import Completion, PrefixGroup, cut_by_budget, pack
from vlm_r1.models.policy import merge_images
from vlm_r1.records import VisionInput


def group(start: int, prefix: int, *completions: int, context: int = 0) -> PrefixGroup:
    """Token ids count up from `start`: first the prefix, then each completion."""
    ids = iter(range(start, start + prefix + sum(completions)))
    take = lambda n: torch.tensor([next(ids) for _ in range(n)], dtype=torch.long)  # noqa: E731
    head = take(prefix)
    places = [prefix + torch.arange(n).expand(3, n) for n in completions]
    leaves = [Completion(token_ids=take(len(p[0])), positions=p, context=context) for p in places]
    return PrefixGroup(
        token_ids=head,
        positions=torch.arange(prefix).expand(3, prefix),
        images=(VisionInput(key=str(start), tensors={"x": torch.full((2, 1), float(start))}),) if start % 2 else (),
        completions=tuple(leaves),
    )


def test_a_row_by_hand():
    row = pack([group(1, 3, 2, 1), group(10, 2, 3)])
    assert row.token_ids.tolist() == [1, 2, 3, 10, 11, 4, 12, 13]  # without 5, 6 and 14, which predict nothing scored
    assert row.positions[0].tolist() == [0, 1, 2, 0, 1, 3, 2, 3]
    assert row.targets.tolist() == [4, 5, 6, 12, 13, 14]
    assert row.predictors.tolist() == [2, 5, 2, 4, 6, 7]  # the prompt's end, then the token before
    assert row.completion_of_target.tolist() == [0, 0, 1, 2, 2, 2]
    assert row.layout.n_prefix == 5 and row.layout.group_of_completion.tolist() == [0, 1]
    assert row.layout.prefix_index.tolist() == [[0, 1, 2], [3, 4, 4]]
    assert row.layout.completion_index.tolist() == [[5, 5], [6, 7]]
    assert [image.key for image in row.images] == ["1"]


def test_context_is_read_and_not_scored():
    row = pack([group(1, 2, 4, context=2)])
    assert row.targets.tolist() == [5, 6] and row.predictors.tolist() == [3, 4]
    assert row.token_ids.tolist() == [1, 2, 3, 4, 5]


def test_answers_of_one_token_leave_prompts_alone_in_the_row():
    row = pack([group(1, 3, 1, 1), group(10, 2, 1)])
    assert row.token_ids.tolist() == [1, 2, 3, 10, 11] and row.layout.group_of_completion.tolist() == []
    assert row.targets.tolist() == [4, 5, 12] and row.predictors.tolist() == [2, 2, 4]
    assert row.completion_of_target.tolist() == [0, 1, 2]


def test_a_branch_sees_its_prefix_and_itself_up_to_here():
    layout = make_layout([2, 1], [3, 3], [0, 1])
    assert layout.completion_mask(None).int().tolist() == [
        [[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]],
        [[[1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 1, 1, 1]]],
    ]
    assert layout.prefix_mask(None) is None  # plain causal


def test_a_window_of_three_ends_two_tokens_back():
    layout = make_layout([2, 1], [3, 3], [0, 1])
    assert layout.completion_mask(3).int().tolist() == [
        [[[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]],
        [[[1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [0, 0, 1, 1, 1]]],
    ]
    assert layout.completion_mask(5) is layout.completion_mask(None)
    assert make_layout([3], [], []).prefix_mask(2).int().tolist() == [[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]


def test_blocks_see_each_other_both_ways():
    layout = make_layout([4, 2], [1, 1], [0, 1], [torch.tensor([-1, 0, 0, -1]), None])
    causal = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert layout.prefix_mask(None).int().tolist() == [
        [[[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]],
        [causal],
    ]
    assert layout.prefix_mask(2).int().tolist()[0] == [[[1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]


def test_padding_index_by_hand():
    index, unpad = pad_index([2, 3], offset=10)
    assert index.tolist() == [[10, 11, 11], [12, 13, 14]]
    assert unpad.tolist() == [0, 1, 3, 4, 5]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 20))
def test_padding_and_back_is_the_identity(lengths, offset):
    row = torch.arange(offset + sum(lengths)) * 7
    index, unpad = pad_index(lengths, offset)
    assert torch.equal(row[index].flatten()[unpad], row[offset:])


def test_images_follow_one_another():
    one, two = (VisionInput(key=k, tensors={"x": torch.tensor(x)}) for k, x in (("a", [1, 2]), ("b", [3])))
    assert merge_images([one, two])["x"].tolist() == [1, 2, 3]
    assert merge_images([]) == {}


shapes = st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=6)), max_size=6)


@given(shapes, st.integers(1, 80))
def test_cutting_keeps_every_branch_in_order_and_the_budget(sizes, budget):
    groups = [group(1000 * i, prefix, *completions) for i, (prefix, completions) in enumerate(sizes)]
    rows = cut_by_budget(groups, budget)
    assert all(rows) and [len(row) > 0 for row in rows] == [True] * len(rows)
    pieces = [piece for row in rows for piece in row]
    answers = [b.token_ids.tolist() for t in groups for b in t.completions]
    assert [b.token_ids.tolist() for piece in pieces for b in piece.completions] == answers
    prefix_of = {b.token_ids[0].item(): t.token_ids.tolist() for t in groups for b in t.completions}
    for piece in pieces:
        assert piece.completions
        assert all(prefix_of[b.token_ids[0].item()] == piece.token_ids.tolist() for b in piece.completions)
    for row in rows:
        tokens = len(pack(row).token_ids)
        assert tokens <= budget or (len(row) == 1 and len(row[0].completions) == 1)


def test_a_tree_that_fits_is_not_split():
    whole = group(0, 5, 3, 3, 3)
    assert cut_by_budget([whole], 11) == [[whole]]  # 5 tokens, and 2 of each completion
    assert [[len(piece.completions) for piece in row] for row in cut_by_budget([whole], 10)] == [[2], [1]]


def test_rows_without_trees_are_refused_by_nobody():
    assert cut_by_budget([], 10) == []


def test_a_row_moves_to_a_device_whole():
    row = pack([group(1, 3, 2)])
    assert row.to(torch.device("cpu")) is row
    moved = row.to(torch.device("meta"))
    assert {moved.token_ids.device.type, moved.layout.completion_mask(None).device.type} == {"meta"}
