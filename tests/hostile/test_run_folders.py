"""Whatever the files of a run folder hold, `view`, `runs` and `report` show the rest, and name the file that is odd.

`FAULTS` is data: a file of a run folder and what stands in it. Each meets every reader of run folders (`READERS`).
"""

import io
import json
import shutil
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_r1.errors import UserError
from vlm_r1.records import LabelledBox
from vlm_r1.report import evaluations
from vlm_r1.report.html import render
from vlm_r1.report.runs import as_json, list_runs, problem_lines, runs_table
from vlm_r1.runtime.runlog import RunLog, boxes_to_json
from vlm_r1.view import pages, samples
from vlm_r1.view.folder import RunFolder
from vlm_r1.view.groups import SHOW, groups_of, select, select_steps
from vlm_r1.view.history import Index, count, moments, scores, search

HUGE, DEEP = "1" + "0" * 400, "[" * 100_000
ODD_VALUES = {
    "a string": '"high"',
    "a huge integer": HUGE,
    "too many digits": "9" * 5000,
    "a large number": "1e300",
    "a list": "[1, 2]",
    "an object": '{"a": 1}',
    "deep": DEEP,
    "deep and closed": DEEP + "]" * 100_000,
    "cut": '{"a"',
    "half a character": '"\\ud800"',
}
"""JSON that is not a number."""
NO_NUMBERS = {"nothing": "null", "NaN": "NaN", "infinity": "-Infinity", "beyond floats": "1e999"}
"""Read as a number that is not known: the trainer writes null for those."""
LINE = '{"step": 3, "reward": 0.5, "loss": 0.5}\n'
ROLLOUTS, EVAL = "rollouts/step-000002.parquet", "eval-after.parquet"


CONFIG = """
data: {train: [{path: a.jsonl}], eval: {val: {path: b.jsonl}}}
run: {steps: 4}
eval: {every: 1, keep_best: val/mean_iou}
"""


def png():
    sink = io.BytesIO()
    Image.new("RGB", (60, 40), "white").save(sink, "PNG")
    return sink.getvalue()


def answer(place, **more):
    boxes = boxes_to_json([LabelledBox(box=(1.0, 2.0, 30.0, 20.0 + place), label="cat")])
    return {
        "sample_id": f"s{place // 2}",
        "task": "rec",
        "question": f"question {place // 2}",
        "completion": "<answer>[1, 2, 30, 20]</answer>",
        "true_boxes": boxes,
        "pred_boxes": boxes,
        "image": png() if place % 2 == 0 else None,
        "image_width": 60,
        "image_height": 40,
        "n_tokens": 9,
    } | more


def rollout(place):
    more = {"group": place // 2, "reward": place / 4, "advantage": place / 4 - 0.5, "parts": '{"iou": 0.5}'}
    return answer(place, **more, token_ids=[1], logprobs=[-0.5], version=1)


def held_out(place):
    return answer(2 * place, split="val", iou=place / 4, score=place / 4, correct=False, well_formed=True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A run folder without faults."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    log = RunLog(folder)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "process.json").write_text('{"host": "elsewhere", "pid": 1, "ended": false}')
    log.environment()
    for step in (1, 2):
        log.metrics(step, {"reward": step / 4, "loss": 0.25, "time/step_s": 2.0})
        log.rollouts(step, [rollout(place) for place in range(4)])
    for phase in ("before", "step-1", "after"):
        metrics = {"val": {"n": 2, "mean_iou": 0.25, "acc@0.5": 0.0}}
        log.evaluation(phase, metrics, [held_out(place) for place in range(2)])
    return folder


def in_json(text):
    """A JSON text in the place of VALUE."""
    return {name: text.replace("VALUE", value) for name, value in ODD_VALUES.items()}


def table(rows, **columns):
    """A table of answers in which some columns hold something else."""
    found = pa.Table.from_pylist(rows)
    for name, value in columns.items():
        kept = found.drop_columns([name]) if name in found.column_names else found
        found = kept.append_column(name, value if isinstance(value, pa.Array) else pa.array([value] * len(rows)))
    sink = pa.BufferOutputStream()
    pq.write_table(found, sink)
    return sink.getvalue().to_pybytes()


CELLS = {name: value for name, value in ODD_VALUES.items() if name not in ("a list", "an object", "half a character")}
ODD_CELLS = CELLS | {
    "an object": '{"a": "x"}',
    "no boxes": "[1, 2]",
    "a null": "null ",
    "not finite": '{"a": NaN, "b": 1e999}',
}
COLUMNS = {
    "group": ["x"] * 4,
    "reward": ["x"] * 4,
    "advantage": [[1.0]] * 4,
    "parts": [b"\xff\xfe"] * 4,
    "true_boxes": [{"a": 1}] * 4,
    "question": [[1]] * 4,
    "sample_id": [[1]] * 4,
    "image": [[1]] * 4,
    "image_width": [2**40] * 4,
    "n_tokens": ["many"] * 4,
}


def faults():
    """(file, what stands in it or None for nothing, whether it is named), by name."""
    for name, text in in_json('{"step": 3, "reward": VALUE}\n' + LINE.replace("3", "4")).items():
        yield f"metrics: reward is {name}", "metrics.jsonl", LINE.replace("3", "2") + text, True
    for name, text in in_json(LINE + '{"step": VALUE, "reward": 0.5}\n' + LINE).items():
        yield f"metrics: step is {name}", "metrics.jsonl", text, True
    for name, text in in_json("VALUE\n" + LINE).items():
        yield f"metrics: a line is {name}", "metrics.jsonl", text, True
    for name, text in in_json('{"step": 3, "warnings": VALUE}\n' + LINE).items():
        yield f"metrics: warnings are {name}", "metrics.jsonl", text, True
    for name, value in NO_NUMBERS.items():
        yield f"metrics: reward is {name}", "metrics.jsonl", f'{{"step": 3, "reward": {value}}}\n{LINE}', False
    for name, value in {"negative": "-3", "true": "true", "a float": "2.0", "missing": "1, 2"}.items():
        yield f"metrics: step is {name}", "metrics.jsonl", f'{{"step": {value}}}\n{LINE}', True
    yield "metrics: a name is long", "metrics.jsonl", f'{{"step": 3, "{"n" * 100_000}": 1}}\n{LINE}', False
    yield "metrics: a last line is cut", "metrics.jsonl", LINE + '{"step": 4, "rew', False
    yield "metrics: bytes", "metrics.jsonl", b"\xff\x00\n" + LINE.encode(), True
    yield "metrics: nothing", "metrics.jsonl", "", False
    yield "metrics: steps run back", "metrics.jsonl", LINE + LINE.replace("3", "1"), False
    for name, text in in_json('{"before": VALUE, "after": {"val": {"n": 2, "mean_iou": 0.5}}}').items():
        yield f"eval.json: a phase is {name}", "eval.json", text, True
    for name, text in in_json('{"before": {"val": VALUE}, "after": {"val": {"n": 2, "mean_iou": 0.5}}}').items():
        yield f"eval.json: a split is {name}", "eval.json", text, name != "an object"
    for metric in ("mean_iou", "n"):
        for name, text in in_json(f'{{"after": {{"val": {{"{metric}": VALUE, "acc@0.5": 0.5}}}}}}').items():
            yield f"eval.json: {metric} is {name}", "eval.json", text, True
        for name, value in NO_NUMBERS.items():
            yield (
                f"eval.json: {metric} is {name}",
                "eval.json",
                f'{{"after": {{"val": {{"{metric}": {value}}}}}}}',
                False,
            )
    for name, text in in_json("VALUE").items():
        yield f"eval.json: {name}", "eval.json", text, True
    for phase in ("../../outside", "", "a b", "step-" + "9" * 80, "step-x"):
        named = phase not in ("step-" + "9" * 80, "step-x")
        yield f"eval.json: phase {phase[:20]!r}", "eval.json", json.dumps({phase: {"val": {"mean_iou": 0.5}}}), named
    yield "eval.json: an evaluation alone", "eval.json", '{"val": {"mean_iou": 0.5}}', None
    for name, text in in_json("VALUE").items():
        yield f"environment.json: {name}", "environment.json", text, name != "an object"
    for name, text in in_json("VALUE").items():
        yield f"process.json: {name}", "process.json", text, None
    for name, text in in_json('{"host": "HOST", "pid": VALUE, "ended": false}').items():
        yield f"process.json: pid is {name}", "process.json", text, None
    for name, text in CONFIGS.items():
        yield f"config.yaml: {name}", "config.yaml", text, None
    for file, row in ((ROLLOUTS, rollout), (EVAL, held_out)):
        rows = [row(place) for place in range(4)]
        yield f"{file}: not Parquet", file, b"PAR1 and then the power went", True
        yield f"{file}: empty", file, b"", True
        yield f"{file}: cut", file, table(rows)[:-100], True
        yield f"{file}: a row of nothing", file, table([{"question": None}]), False
        yield f"{file}: another table", file, table([{"a": 1}]), True
        for column, values in COLUMNS.items():
            if column in rows[0]:
                yield f"{file}: another type of {column}", file, table(rows, **{column: pa.array(values)}), None
        for column in rows[0]:
            yield f"{file}: no {column}", file, table([{k: v for k, v in r.items() if k != column} for r in rows]), None
            yield f"{file}: nulls in {column}", file, table(rows, **{column: None}), None
        for name, cell in ODD_CELLS.items():
            for column in ("true_boxes", "pred_boxes", "parts"):
                if column in rows[0]:
                    named = None if (name, column) in MAY_PASS else True
                    yield f"{file}: {column} is {name}", file, table(rows, **{column: cell}), named
        for value in (float("nan"), float("inf"), 1e300):
            for column in ("reward", "advantage", "iou", "score"):
                if column in rows[0]:
                    yield f"{file}: {column} is {value}", file, table(rows, **{column: value}), False
        for side in (0, -5, 2**31 - 1):
            yield f"{file}: an image {side} wide", file, table(rows, image_width=side), False
        for name, image in {"nothing": b"", "no image": b"GIF89a?", "cut": png()[:40]}.items():
            yield f"{file}: an image is {name}", file, table(rows, image=image), False
    yield "rollouts: a step without its zeros", "rollouts/step-7.parquet", table([rollout(0)]), None
    yield "rollouts: a step of many digits", f"rollouts/step-{'9' * 60}.parquet", table([rollout(0)]), None


MAY_PASS = {("an object", "parts"), ("a null", "parts"), ("a null", "true_boxes"), ("a null", "pred_boxes")}
MAY_PASS |= {("not finite", "parts")}
CONFIGS = {
    "broken": "run: {steps: 4",
    "deep": DEEP,
    "a list": "[1]",
    "a string": "word",
    "a date that is none": "run: {seed: 2020-99-99}",
    "steps are huge": f"run: {{steps: {HUGE}}}",
    "steps are words": "run: {steps: many}",
    "sections of another type": "run: 3\nmodel: [1]\nrl: x",
    "an anchor in itself": "run: &a {steps: 4, more: *a}",
    "keys that are no words": "run: {1: 2, null: 3, 2020-01-01: [{2020-01-01: 1}]}\nmodel: {? [a, b] : 1}",
    "bytes": b"\xff\xfe\x00",
}
FAULTS = {name: (file, content, named) for name, file, content, named in faults()}


def view(folder):
    """What all tabs of the viewer show, as far as they read files."""
    run = RunFolder(folder)
    shown = [lambda: pages.head([run]), lambda: pages.training([run]), lambda: pages.settings([run])]
    shown += [lambda show=show: select_steps(run.steps(), run.metrics(), show) for show in SHOW]
    for step in run.steps():
        shown += [lambda step=step: answers(groups_of(run.rollouts(step)))]
        shown += [lambda step=step, show=show: select(groups_of(run.rollouts(step)), show) for show in SHOW]
    chosen = samples.choices([run])
    for new in chosen:
        for old in (None, chosen[0]):
            shown += [lambda new=new, old=old: pages.table(*samples.table(new, old))]
            shown += [lambda new=new, old=old: questions(new, old)]
    index = Index(run)
    index.read_on()
    index.join()
    shown += [lambda key=key: one_question(index, key) for key in search([index], "")]
    return "\n".join(map(told, [*shown, lambda: pages.head([run])]))


def answers(groups):
    return pages.strip(groups, 0, 0, "groups") + "".join(
        pages.detail(group.question, [*pages.tags(group), *pages.facts_of(group.rows[0])], [pages.side(group)])
        for group in groups
    )


def questions(new, old):
    pairs = [pair for of in samples.pairs_of(new, old).values() for pair in of]
    for show in samples.SHOW:
        samples.select(pairs, show)
    return answers([samples.group(pair, new) for pair in pairs])


def one_question(index, key):
    found = moments([index], key)
    return f"{count([index], key)} {scores(found, 'run')} {answers([moment.group for moment in found])}"


def told(render):
    """As `view.parts.told`, without gradio."""
    try:
        return str(render())
    except (UserError, OSError) as error:
        return str(error)


def runs(folder):
    found = list_runs(folder.parent)
    json.dumps(as_json(found))
    list(runs_table(found).rows)
    return "\n".join(["run", *(run.name for run in found), *problem_lines(found)])


def report(folder):
    return render([folder])


READERS = {"view": view, "runs": runs, "report": report}
SEES = {
    "metrics.jsonl": {"view", "runs", "report"},
    "eval.json": {"view", "runs", "report"},
    "environment.json": {"view", "report"},
    ROLLOUTS: {"view", "report"},
    EVAL: {"view", "report"},
}


QUICK = {
    "metrics: reward is a string",
    "metrics: step is a huge integer",
    "metrics: a line is deep",
    "metrics: warnings are an object",
    "metrics: a last line is cut",
    "eval.json: a phase is deep",
    "eval.json: a split is a string",
    "eval.json: mean_iou is a string",
    "eval.json: a list",
    "eval.json: phase '../../outside'",
    "environment.json: a list",
    "process.json: deep",
    "process.json: pid is a huge integer",
    "config.yaml: broken",
    "config.yaml: an anchor in itself",
    f"{ROLLOUTS}: not Parquet",
    f"{ROLLOUTS}: another table",
    f"{ROLLOUTS}: another type of reward",
    f"{ROLLOUTS}: no reward",
    f"{ROLLOUTS}: reward is nan",
    f"{ROLLOUTS}: true_boxes is deep",
    f"{ROLLOUTS}: parts is a string",
    f"{EVAL}: cut",
    f"{EVAL}: another type of question",
    f"{EVAL}: no true_boxes",
    f"{EVAL}: pred_boxes is no boxes",
    f"{EVAL}: an image is cut",
    f"{EVAL}: an image 0 wide",
    "rollouts: a step without its zeros",
}
"""Those that every test run takes; the others are a campaign for their number alone."""


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(evaluations, "RESAMPLES", 10)
    monkeypatch.setattr(evaluations, "RESAMPLES_OF_BOXES", 10)


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_odd_in_a_whole_folder(whole, reader):
    assert f"{whole}/" not in READERS[reader](whole)
    assert list_runs(whole.parent)[0].state != "broken"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "fault", [*sorted(QUICK), *(pytest.param(name, marks=pytest.mark.campaign) for name in FAULTS if name not in QUICK)]
)
def test_one_odd_file_is_named_and_the_rest_is_shown(whole, tmp_path, fault, reader):
    file, content, named = FAULTS[fault]
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    content = content if isinstance(content, bytes) else content.replace("HOST", socket.gethostname()).encode()
    (folder / file).write_bytes(content)
    text = READERS[reader](folder)
    if reader in SEES.get(file, ()) and named is not None:
        assert (f"{folder / file}: " in text) is named, text[-2000:]
    assert "run" in text and not text.endswith("run: ")
    if file != "metrics.jsonl" and reader != "runs":
        assert "Time of a step" in text
    if file not in (EVAL, "eval.json") and reader == "report":
        assert "question 0" in text
