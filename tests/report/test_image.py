import pytest
from PIL import Image, ImageColor

from vlm_r1.data.draw import PREDICTED_COLOR, TRUE_COLOR
from vlm_r1.errors import CheckpointError
from vlm_r1.report.image import TILE, before_after_png, typical

GREEN, ORANGE = ImageColor.getrgb(TRUE_COLOR), ImageColor.getrgb(PREDICTED_COLOR)


def count(image, color):
    return sum(n for n, c in image.getcolors(maxcolors=1 << 24) if c == color)


def test_before_after_image_shows_questions_in_two_rows(run_dir, tmp_path):
    out = before_after_png(run_dir, tmp_path / "new" / "figure.png", count=3)
    with Image.open(out) as figure:
        assert figure.format == "PNG" and figure.width > 3 * TILE and figure.height > 2 * TILE
        assert count(figure.convert("RGB"), GREEN) > 500 and count(figure.convert("RGB"), ORANGE) > 200
    assert out.stat().st_size < 1_500_000


def test_before_after_image_without_images_says_what_is_needed(tmp_path):
    with pytest.raises(CheckpointError, match=r"eval-before\.parquet"):
        before_after_png(tmp_path, tmp_path / "figure.png")


def test_typical_pairs_span_the_ranking():
    class Fake:
        def __init__(self, gain):
            self.gain, self.image = gain, b"x"

    pairs = [Fake(gain / 10) for gain in (3, 9, 0, 5, 1, 8, 2, 7, 4, 6)]
    assert [pair.gain for pair in typical(pairs, 5)] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert len(typical(pairs, 20)) == 10
