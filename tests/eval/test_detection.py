import numpy as np
import pytest
from detection_oracle import box, library_map, random_split, slow_map, slow_nms

from vlm_r1.eval.detection import match_split, suppress


def ones(matches):
    return np.ones(len(matches.n_true_N), dtype=int)


@pytest.mark.parametrize("seed", range(12))
def test_map_equals_pycocotools_over_a_split(seed):
    true, predicted = random_split(seed)
    matches = match_split(true, predicted)
    assert matches.mean_ap(ones(matches)) == pytest.approx(library_map(true, predicted), abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_resampled_map_equals_pycocotools_on_the_repeated_questions(seed):
    true, predicted = random_split(seed, questions=8)
    counts = np.random.default_rng(seed).multinomial(8, [1 / 8] * 8)
    repeated = [i for i, count in enumerate(counts) for _ in range(count)]
    expected = library_map([true[i] for i in repeated], [predicted[i] for i in repeated])
    assert match_split(true, predicted).mean_ap(counts) == pytest.approx(expected, abs=1e-9)


def test_hand_computed_split():
    """Two cats, both found, one dog missed: AP of cat is 1, of dog 0."""
    true = [[box(0, 0, 10, 10), box(20, 0, 30, 10)], [box(0, 0, 10, 10, "dog")]]
    predicted = [[box(0, 0, 10, 10), box(20, 0, 30, 10)], []]
    matches = match_split(true, predicted)
    assert matches.mean_ap(ones(matches)) == (0.5, 0.5)
    assert matches.greedy(ones(matches)) == (1.0, 2 / 3)


def test_greedy_precision_and_recall_by_hand():
    true = [[box(0, 0, 10, 10), box(40, 40, 50, 50)], [], [box(0, 0, 10, 10, "dog")]]
    predicted = [
        # Found; a duplicate; the place of a cat with another label.
        [box(0, 0, 10, 8), box(0, 0, 10, 9), box(40, 40, 50, 50, "dog")],
        [box(0, 0, 5, 5, "unicorn")],
        # IoU 0.4 only.
        [box(0, 0, 10, 4, "dog")],
    ]
    matches = match_split(true, predicted)
    assert matches.greedy(ones(matches)) == (1 / 5, 1 / 3)
    # The first question twice, the second never.
    assert matches.greedy(np.array([2, 0, 1])) == (2 / 7, 2 / 5)


def test_a_prediction_takes_the_true_box_it_overlaps_most():
    true = [[box(0, 0, 10, 10), box(0, 1, 10, 11)]]
    matches = match_split(true, [[box(0, 1, 10, 11), box(0, 0, 10, 10)]])
    assert matches.mean_ap(ones(matches)) == (1.0, 1.0)


def test_labels_compare_without_case_and_space():
    matches = match_split([[box(0, 0, 9, 9, "Red  Cup")]], [[box(0, 0, 9, 9, " red cup")]])
    assert matches.mean_ap(ones(matches)) == (1.0, 1.0)


def test_nothing_predicted_and_nothing_true():
    matches = match_split([[box(0, 0, 9, 9)], []], [[], []])
    assert (matches.mean_ap(ones(matches)), matches.greedy(ones(matches))) == ((0.0, 0.0), (0.0, 0.0))
    for predicted in ([[], []], [[box(0, 0, 9, 9)], []]):
        empty = match_split([[], []], predicted)
        assert (empty.mean_ap(ones(empty)), empty.greedy(ones(empty))) == (None, None)


def test_matching_is_silent(capsys):
    match_split([[box(0, 0, 9, 9)]], [[box(0, 0, 9, 9)]])
    assert capsys.readouterr().out == ""


def test_of_several_labels_for_one_object_the_first_written_remains():
    true = [box(0, 0, 10, 10, "cat"), box(50, 50, 60, 60, "cup")]
    right, wrong = box(0, 0, 10, 9, "cat"), box(0, 0, 10, 10, "dog")
    far = box(80, 80, 90, 90, "dog")
    assert suppress(true, [right, wrong, far, far]) == [right, far, far]
    assert suppress(true, [wrong, right, far]) == [wrong, far]


def test_suppression_is_above_the_threshold_only():
    true, half = [box(0, 0, 10, 10)], box(0, 0, 10, 5)
    assert suppress(true, [half, half]) == [half, half]
    over = box(0, 0, 10, 6)
    assert suppress(true, [over, over, half]) == [over, half]


def test_a_box_kept_for_one_object_is_not_removed_for_another():
    """The middle box is second around the left object and first around the right one."""
    true = [box(0, 0, 10, 10, "a"), box(3, 0, 13, 10, "b")]
    left, middle, right = box(0, 0, 10, 9.9), box(1.5, 0, 11.5, 10), box(3, 0, 13, 9.9)
    assert suppress(true, [left, middle]) == [left]
    assert suppress([true[0], box(4.5, 0, 14.5, 10)], [left, middle]) == [left, middle]
    assert suppress(true, [middle, left, right]) == [middle]


def test_suppression_without_boxes():
    assert suppress([], [box(0, 0, 1, 1)]) == [box(0, 0, 1, 1)]
    assert suppress([box(0, 0, 1, 1)], []) == []


@pytest.mark.parametrize("seed", range(20, 32))
def test_nms_ap_equals_the_slow_form(seed):
    true, predicted = random_split(seed)
    quick = [suppress(t, p) for t, p in zip(true, predicted, strict=True)]
    slow = [slow_nms(t, p) for t, p in zip(true, predicted, strict=True)]
    assert quick == slow
    assert sum(map(len, quick)) < sum(map(len, predicted))
    matches = match_split(true, quick)
    assert matches.mean_ap(ones(matches))[0] == pytest.approx(slow_map(true, slow), abs=1e-9)


def test_a_box_of_any_size_that_finds_nothing_costs():
    """COCO leaves out areas above 1e10; an answer may name such a box, and it is as wrong as any."""
    true = [[box(0, 0, 10, 10)]]
    matches = match_split(true, [[box(0, 0, 1e9, 1e9), box(0, 0, 10, 10)]])
    assert matches.mean_ap(ones(matches)) == (0.5, 0.5)
    assert matches.greedy(ones(matches)) == (0.5, 1.0)
