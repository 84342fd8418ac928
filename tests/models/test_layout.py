"""Which tokens see which, against masks written by hand."""

import pytest
import torch

from vlm_r1.models.layout import WHOLE, make_layout


def rows(mask: torch.Tensor) -> list[str]:
    return ["".join(".x"[int(seen)] for seen in row) for row in mask.tolist()]


BLOCKS = torch.tensor([-1, 0, 0, 0, 1, 1])
PREFIXES = [
    # blocks, window, expected
    (BLOCKS, None, ["x.....", "xxxx..", "xxxx..", "xxxx..", "xxxxxx", "xxxxxx"]),
    (BLOCKS, 2, ["x.....", "xxxx..", ".xxx..", "..xx..", "...xxx", "....xx"]),
    (torch.full((6,), WHOLE), None, ["xxxxxx"] * 6),
    (torch.full((6,), WHOLE), 2, ["xxxxxx"] * 6),
    (None, 2, ["x.....", "xx....", ".xx...", "..xx..", "...xx.", "....xx"]),
]


@pytest.mark.parametrize(("blocks", "window", "expected"), PREFIXES)
def test_prefix_tokens_see_their_block_and_what_lies_before(blocks, window, expected):
    layout = make_layout([6], [], [], [blocks])
    assert rows(layout.prefix_mask(window)[0, 0]) == expected


def test_a_shorter_prefix_without_blocks_stays_causal_beside_one_with_them():
    layout = make_layout([3, 2], [], [], [torch.full((3,), WHOLE), None])
    whole, causal = layout.prefix_mask(None)[:, 0]
    assert rows(whole) == ["xxx"] * 3
    assert rows(causal)[:2] == ["x..", "xx."]


def test_plain_causal_needs_no_mask():
    layout = make_layout([4, 6], [], [])
    assert layout.prefix_mask(None) is None and layout.prefix_mask(6) is None


def test_branches_see_the_end_of_their_prefix_through_a_window():
    layout = make_layout([4, 2], [3, 1], [0, 1], [torch.full((4,), WHOLE), None])
    first, second = layout.completion_mask(None)[:, 0]
    assert rows(first) == ["xxxx" + own for own in ("x..", "xx.", "xxx")]
    assert rows(second)[0] == "xx.." + "x.."
    first, second = layout.completion_mask(3)[:, 0]
    assert rows(first) == ["..xxx..", "...xxx.", "....xxx"]
    assert rows(second)[0] == "xx..x.."
