"""Images of held-out questions that no table keeps: from the data set, or drawn again."""

import io
import json

import pytest
from PIL import Image

from vlm_r1.config import DataSource
from vlm_r1.data.source import load_source
from vlm_r1.errors import CheckpointError, DataError
from vlm_r1.report.held_out import HeldOutImages
from vlm_r1.report.html import render
from vlm_r1.report.image import GAP, MARGIN, TILE, before_after_png
from vlm_r1.runtime.runlog import RunLog, read_eval_data, read_samples, write_eval_samples

SCENES = {"scenes": {"split": "in_domain", "n": 6, "per_image": 2, "start": 3, "questions": {"attribute": 1.0}}}


def rows_of(samples, split="held", **more):
    """A row a question, as an evaluation writes it, with the wrong answer and without the image."""
    rows = []
    for sample in samples:
        width, height = sample.images[0].size
        row = {"split": split, "sample_id": sample.id, "question": sample.question, "iou": 0.0, "correct": False}
        rows.append(row | {"image_width": width, "image_height": height} | more)
    return rows


@pytest.fixture
def photos(tmp_path):
    """A data file with five photos, each of its own colour and size, in a folder of its own."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for n in range(5):
        Image.new("RGB", (40 + n, 30), (50 * n, 0, 0)).save(folder / "images" / f"{n}.png")
        lines.append({"image": f"images/{n}.png", "problem": f"thing {n}", "solution": [1, 1, 9, 9], "task": "rec"})
    (folder / "val.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def data(folder, **splits):
    return {"folder": str(folder), "seed": 3, "splits": splits}


def test_a_scene_is_drawn_again(tmp_path):
    samples = load_source(DataSource.model_validate(SCENES))
    rows = rows_of(samples)
    write_eval_samples(tmp_path / "t.parquet", rows, data(tmp_path, held=SCENES))
    images = HeldOutImages([tmp_path / "t.parquet"])
    for row, sample in zip(rows, samples, strict=True):
        found = Image.open(io.BytesIO(images.find([row]))).convert("RGB")
        assert found.tobytes() == sample.images[0].open().tobytes()


def test_a_file_is_read_where_its_paths_start_whatever_was_sampled(photos, tmp_path, monkeypatch):
    source = {"path": "val.jsonl", "sampling": "random:3"}
    samples = load_source(DataSource.model_validate(source), base=photos, seed=3)
    assert len(samples) == 3
    rows = rows_of(samples)
    write_eval_samples(tmp_path / "t.parquet", rows, data(photos, held=source))
    monkeypatch.chdir(tmp_path)
    images = HeldOutImages([tmp_path / "gone.parquet", tmp_path / "t.parquet"])
    for row in rows:
        n = row["question"].removeprefix("thing ")
        assert images.find([row]) == (photos / "images" / f"{n}.png").read_bytes()
    assert images.find([{**rows[0], "image": b"stored"}]) == b"stored"


def test_what_is_not_found_is_said(photos, tmp_path):
    source = {"path": "val.jsonl"}
    rows = rows_of(load_source(DataSource.model_validate(source), base=photos))
    table = tmp_path / "t.parquet"

    def said(row, folder=photos, **splits):
        write_eval_samples(table, rows, data(folder, **(splits or {"held": source})))
        with pytest.raises(DataError) as raised:
            HeldOutImages([table]).find([row])
        return str(raised.value)

    assert "has changed" in said({**rows[0], "question": "another thing"})
    assert "has changed" in said({**rows[0], "image_width": 7})
    assert 'does not name the data of split "held"' in said(rows[0], other=source)
    assert "moved" in said(rows[0], folder=tmp_path / "moved")
    lines = (photos / "val.jsonl").read_text().splitlines()
    (photos / "val.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert "has changed" in said(rows[0]) and "has changed" in said(rows[4])
    with pytest.raises(DataError, match="its table names no data"):
        HeldOutImages([]).find([rows[0]])


def test_the_table_keeps_what_was_given_and_a_broken_one_is_said(tmp_path):
    write_eval_samples(tmp_path / "a.parquet", [], {"seed": 1})
    write_eval_samples(tmp_path / "b.parquet", [])
    assert read_eval_data(tmp_path / "a.parquet") == {"seed": 1} and read_eval_data(tmp_path / "b.parquet") == {}
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(CheckpointError, match="not a whole Parquet file"):
        read_eval_data(tmp_path / "c.parquet")


@pytest.fixture
def regressed(tmp_path):
    """A run of 40 questions, the images of the first 24 of which are stored: the last one lost most, by far."""
    source = {"scenes": {"split": "in_domain", "n": 40, "questions": {"attribute": 1.0}}}
    samples = load_source(DataSource.model_validate(source))
    log = RunLog(tmp_path / "run")
    for phase, first, last in (("before", 0.5, 0.9), ("after", 0.49, 0.1)):
        rows = rows_of(samples, iou=first)
        for n, (row, sample) in enumerate(zip(rows, samples, strict=True)):
            sink = io.BytesIO()
            sample.images[0].open().save(sink, "PNG")
            row["question"] = sample.question if n < 39 else "the one that got worse"
            row["image"] = sink.getvalue() if n < 24 else None
        rows[39] |= {"iou": last, "question": samples[39].question}
        log.evaluation(phase, {"held": {"n": 40, "mean_iou": first}}, rows, data(tmp_path, held=source))
    return tmp_path / "run", samples


def test_the_biggest_loss_is_shown_wherever_it_stands(regressed):
    run, samples = regressed
    page = render([run])
    losses = page[page.index("Biggest losses") : page.index("Drawn at random")]
    first = losses[losses.index("<article") : losses.index("</article>")]
    assert samples[39].question in first and "IoU \N{MINUS SIGN}0.800" in first
    assert 'href="data:image' in first and "image not found" not in page
    assert "Chosen from all 40 questions." in page


def test_a_loss_whose_image_is_gone_is_shown_all_the_same(regressed):
    run, samples = regressed
    for phase in ("before", "after"):
        path = run / f"eval-{phase}.parquet"
        write_eval_samples(path, read_samples(path))
    page = render([run])
    losses = page[page.index("Biggest losses") :]
    first = losses[losses.index("<article") : losses.index("</article>")]
    assert samples[39].question in first and "image not found" in first
    with Image.open(before_after_png(run, run / "x.png", "held", count=40)) as figure:
        assert figure.width == MARGIN + 24 * (TILE + GAP), "those that the tables keep"


def test_the_figure_spans_all_questions(regressed):
    run, _ = regressed
    with Image.open(before_after_png(run, run / "x.png", "held", count=40)) as figure:
        assert figure.width == MARGIN + 40 * (TILE + GAP)
