import pytest
from PIL import Image, ImageColor

from vlm_r1.errors import CheckpointError
from vlm_r1.records import LabelledBox
from vlm_r1.report.draw import PREDICTED_COLOR, TRUE_COLOR, draw_boxes, fitting_scale
from vlm_r1.report.picture import TILE, before_after_png, typical

GREEN, ORANGE = ImageColor.getrgb(TRUE_COLOR), ImageColor.getrgb(PREDICTED_COLOR)


def count(image, color):
    return sum(n for n, c in image.getcolors(maxcolors=1 << 24) if c == color)


def test_small_pictures_grow_by_a_whole_factor_and_large_ones_stay():
    assert [fitting_scale(size) for size in [(96, 96), (64, 20), (320, 10), (1000, 700), (1, 1)]] == [4, 5, 1, 1, 320]


def test_true_box_is_solid_green_and_predicted_is_dashed_orange():
    image = Image.new("RGB", (100, 100), "white")
    drawn = draw_boxes(image, [LabelledBox(box=(10, 10, 50, 50))], [LabelledBox(box=(60, 60, 90, 90))])
    assert drawn.size == (400, 400) and image.getpixel((10, 10)) == (255, 255, 255)
    top = [drawn.getpixel((x, 40)) for x in range(40, 201)]
    assert set(top) == {GREEN}
    edge = [drawn.getpixel((x, 240)) for x in range(240, 361)]
    assert ORANGE in edge and len(set(edge)) == 2
    assert drawn.getpixel((120, 120)) == (255, 255, 255)


def test_boxes_outside_reversed_or_not_finite_do_no_harm():
    image = Image.new("RGB", (50, 40), "white")
    nan = float("nan")
    clean = draw_boxes(image, scale=1)
    assert draw_boxes(image, [LabelledBox(box=(nan, 0, 1, 1), label="x")], scale=1).tobytes() == clean.tobytes()
    drawn = draw_boxes(image, predicted=[LabelledBox(box=(1e12, -50, -9, 20))], scale=1)
    assert drawn.size == (50, 40) and count(drawn, ORANGE) > 10


def test_labels_of_near_boxes_do_not_cover_each_other():
    image = Image.new("RGB", (96, 96), "white")
    boxes = [LabelledBox(box=(20, 40, 60, 60), label="aaa"), LabelledBox(box=(21, 41, 61, 61), label="aaa")]
    one, two = (count(draw_boxes(image, boxes[:n]), GREEN) for n in (1, 2))
    plain = count(draw_boxes(image, [LabelledBox(box=b.box) for b in boxes]), GREEN)
    label = one - count(draw_boxes(image, [LabelledBox(box=boxes[0].box)]), GREEN)
    assert label > 300 and two - plain > 1.6 * label


def test_before_after_picture_shows_questions_in_two_rows(run_dir, tmp_path):
    out = before_after_png(run_dir, tmp_path / "new" / "figure.png", count=3)
    with Image.open(out) as figure:
        assert figure.format == "PNG" and figure.width > 3 * TILE and figure.height > 2 * TILE
        assert count(figure.convert("RGB"), GREEN) > 500 and count(figure.convert("RGB"), ORANGE) > 200
    assert out.stat().st_size < 1_500_000


def test_before_after_picture_without_pictures_says_what_is_needed(tmp_path):
    with pytest.raises(CheckpointError, match=r"eval-before\.parquet"):
        before_after_png(tmp_path, tmp_path / "figure.png")


def test_typical_pairs_span_the_ranking():
    class Fake:
        def __init__(self, gain):
            self.gain, self.image = gain, b"x"

    pairs = [Fake(gain / 10) for gain in (3, 9, 0, 5, 1, 8, 2, 7, 4, 6)]
    assert [pair.gain for pair in typical(pairs, 5)] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert len(typical(pairs, 20)) == 10
