import pytest

from vlm_r1.rewards.grounding import giou, iou, iou_threshold, point_in_box

TRUE = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("[0, 0, 10, 10]", 1.0),
        ("[0, 0, 10, 5]", 0.5),
        ("[5, 0, 15, 10]", 1 / 3),
        ("[5, 5, 15, 15]", 25 / 175),
        ("[10, 0, 20, 10]", 0.0),
        # One pixel of overlap is 1 / 199, not 0 as in the reference.
        ("[9, 9, 19, 19]", 1 / 199),
        # Floats and negatives are boxes, not failures as in the reference.
        ("[-2.5, 0, 7.5, 10]", 75 / 125),
        # Of several boxes the first counts.
        ("[[0, 0, 10, 5], [0, 0, 10, 10]]", 0.5),
        # A dropped box is not the first.
        ("[[5, 5, 5, 5], [0, 0, 10, 10]]", 1.0),
        ("None", 0.0),
        ("[10, 10, 0, 0]", 0.0),
        ("over there", 0.0),
        ("", 0.0),
    ],
)
def test_iou_by_hand(case, written, value):
    score = iou(*case("rec", written, boxes=[TRUE]))
    assert score.total == pytest.approx(value, abs=1e-12)
    assert score.parts == {"iou": score.total}


def test_no_complete_answer_is_zero_whatever_else_is_there(case):
    for text in ("[0, 0, 10, 10]", "<think>[0,0,10,10]</think>", "<answer>[0,0,10,10]"):
        assert iou(*case("rec", text, wrap=False, boxes=[TRUE])).total == 0


def test_of_several_true_boxes_the_best_counts(case):
    assert iou(*case("rec", "[0, 0, 10, 5]", boxes=[(50, 50, 60, 60), TRUE])).total == 0.5


def test_nothing_there_is_met_by_saying_so(case):
    assert iou(*case("rec", "None", boxes=[])).total == 1
    assert iou(*case("rec", "[0, 0, 1, 1]", boxes=[])).total == 0
    assert iou(*case("rec", "hm", boxes=[])).total == 0


def test_without_a_true_box_it_is_not_scorable(case):
    assert iou(*case("rec", "[0, 0, 1, 1]", text="a")).total is None


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("[0, 0, 10, 10]", 1.0),
        ("[0, 0, 10, 5]", 0.5),
        # IoU 1/3, hull 150 = union 150.
        ("[5, 0, 15, 10]", 1 / 3),
        # No overlap, hull 30 x 10 = 300, union 200.
        ("[20, 0, 30, 10]", -100 / 300),
        # IoU 25/175, hull 225, union 175.
        ("[5, 5, 15, 15]", 25 / 175 - 50 / 225),
        ("hm", 0.0),
    ],
)
def test_giou_by_hand(case, written, value):
    assert giou(*case("rec", written, boxes=[TRUE])).total == pytest.approx(value, abs=1e-12)


def test_scaled_giou_puts_any_box_above_none(case):
    assert giou(*case("rec", "[20, 0, 30, 10]", boxes=[TRUE]), scaled=True).total == pytest.approx(1 / 3)
    assert giou(*case("rec", "hm", boxes=[TRUE]), scaled=True).total == 0


def test_threshold_is_met_from_its_value_on(case):
    half = case("rec", "[0, 0, 10, 5]", boxes=[TRUE])
    assert iou_threshold(*half).total == 1
    assert iou_threshold(*half, threshold=0.51).total == 0


@pytest.mark.parametrize(
    ("written", "value"),
    [("[5, 5]", 1), ("[0, 10]", 1), ("[10.1, 5]", 0), ("[4, 4, 8, 8]", 1), ("[8, 8, 16, 16]", 0), ("left", 0)],
)
def test_a_click_counts_inside_the_box_with_its_edges(case, written, value):
    assert point_in_box(*case("gui", written, boxes=[TRUE])).total == value
