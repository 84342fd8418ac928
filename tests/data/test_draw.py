import itertools

from PIL import Image, ImageColor

from vlm_r1.data.draw import PREDICTED_COLOR, TRUE_COLOR, draw_boxes, fitting_scale, free_place
from vlm_r1.records import LabelledBox

GREEN, ORANGE = ImageColor.getrgb(TRUE_COLOR), ImageColor.getrgb(PREDICTED_COLOR)


def count(image, color):
    return sum(n for n, c in image.getcolors(maxcolors=1 << 24) if c == color)


def test_small_images_grow_by_a_whole_factor_and_large_ones_stay():
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


def test_a_label_without_room_is_left_out():
    """A crowd of equal boxes: labels beside each other as far as there is room, never one over another."""
    size, placed, label = (320, 320), [], (60.0, 16.0)
    for _ in range(40):
        place = free_place((100.0, 120.0, 220.0, 200.0), label, size, placed)
        if place is not None:
            placed.append(place)
    assert 8 <= len(placed) < 40
    for a, b in itertools.combinations(placed, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert all(min(p[:2]) >= 0 and max(p[2:]) <= 320 for p in placed)
    image = Image.new("RGB", (320, 320), "white")
    crowd = [LabelledBox(box=(100, 120, 220, 200), label="aaaaaa")] * 40
    assert draw_boxes(image, crowd).tobytes() == draw_boxes(image, crowd[:20]).tobytes()


def test_boxes_are_drawn_where_they_are():
    drawn = draw_boxes(Image.new("RGB", (100, 50)), [LabelledBox(box=(20, 10, 60, 40))], scale=2)
    assert drawn.size == (200, 100)
    bright = [(x, y) for x in range(200) for y in range(100) if drawn.getpixel((x, y)) == GREEN]
    assert (min(x for x, _ in bright), min(y for _, y in bright)) == (40, 20)
    assert (max(x for x, _ in bright), max(y for _, y in bright)) == (120, 80)


def test_predicted_boxes_have_colors_of_their_own():
    image = Image.new("RGB", (100, 100), "white")
    boxes = [LabelledBox(box=(10, 10, 30, 30)), LabelledBox(box=(60, 60, 90, 90))]
    drawn = draw_boxes(image, predicted=boxes, scale=1, colors=["#ff0000", "#0000ff"])
    assert drawn.getpixel((10, 10)) == (255, 0, 0) and drawn.getpixel((60, 60)) == (0, 0, 255)
    assert count(drawn, ORANGE) == 0
