import pytest
from PIL import Image

from vlm_r1.data.show import show_file, truth_text
from vlm_r1.errors import DataError
from vlm_r1.records import LabelledBox, Truth

ROWS = [
    {"image": "a.png", "problem": "the <b>cat</b>", "solution": [10, 10, 30, 40]},
    {"images": ["a.png", "b.jpg"], "problem": "same?", "solution": "no"},
    {"problem": "How many?", "solution": 3},
    {"image": "b.jpg", "problem": "detect dog", "solution": [{"bbox": [1, 2, 3, 4.5], "label": "dog"}]},
    {"image": "nope.png", "problem": "x", "solution": [1, 2, 3, 4]},
]


def test_a_page_holds_images_questions_and_truths(write, folder, capsys):
    out = folder / "out" / "page.html"
    show_file(write(*ROWS), out, n=10)
    page = out.read_text(encoding="utf-8")
    assert page.count("<article>") == 4
    assert page.count("data:image/png;base64,") == 3
    assert "the &lt;b&gt;cat&lt;/b&gt;" in page
    assert "dog [1, 2, 3, 4.5]" in page
    assert "data.jsonl:4 · ovd" in page
    assert "4 of 5 rows; rows with faults left out: 1 " in capsys.readouterr().out


def test_a_sheet_is_a_image(write, folder):
    out = folder / "sheet.png"
    show_file(write(*ROWS), out, n=3, seed=1)
    with Image.open(out) as sheet:
        assert sheet.width > 320 * 3
        assert sheet.height > 100


def test_the_seed_picks_the_rows(write, folder):
    path = write(*({"problem": f"q{i}", "solution": i} for i in range(50)))
    pages = []
    for seed in (0, 0, 1):
        show_file(path, folder / "page.html", n=5, seed=seed)
        pages.append((folder / "page.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1] != pages[2]


@pytest.mark.parametrize(
    ("truth", "text"),
    [
        (Truth(boxes=()), "nothing there"),
        (Truth(boxes=(LabelledBox(box=(1.0, 2.0, 3.0, 4.0)),)), "[1, 2, 3, 4]"),
        (Truth(number=4.0), "4"),
        (Truth(choice="B"), "B"),
        (Truth(text="yes"), "yes"),
    ],
)
def test_truths_in_words(truth, text):
    assert truth_text(truth) == text


def test_what_cannot_be_shown_is_said(write, folder):
    with pytest.raises(DataError, match="no row can be drawn"):
        show_file(write(ROWS[4]), folder / "page.html")
    with pytest.raises(DataError, match=r"\.html page or a \.png sheet"):
        show_file(write(ROWS[0]), folder / "page.pdf")
    with pytest.raises(DataError, match="is empty"):
        show_file(write(""), folder / "page.html")
