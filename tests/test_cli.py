"""The command line: what it passes on, how it fails, and that it answers without torch."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import run

from vlm_r1 import __version__
from vlm_r1.cli import main
from vlm_r1.errors import DataError

RECIPE = "data:\n  train:\n    - scenes: {n: 4}\n  eval:\n    held: {scenes: {split: in_domain, n: 4}}\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(RECIPE)
    return str(path)


def replace(monkeypatch, module: str, **functions):
    """Put an implementation in the place of one that would train or load a model."""
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**functions))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["data", "convert", "--help"], 0),
        (["--version"], 0),
        (["train", "RECIPE", "rl.group_sise=4"], 2),
        (["trian"], 2),
    ],
)
def test_help_and_typos_answer_without_torch(recipe, arguments, code):
    arguments = [recipe if a == "RECIPE" else a for a in arguments]
    program = (
        "import sys\nfrom vlm_r1.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as stop: assert (stop.code or 0) == " + str(code) + ", stop.code\n"
        "assert not {'torch', 'transformers', 'datasets', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(capsys):
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("train", "sft", "eval", "predict", "demo", "report", "score", "data"))
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_a_user_error_is_one_message_and_exit_2(recipe, capsys):
    assert run("train", recipe, "rl.group_sise=4") == 2
    said = capsys.readouterr().err
    assert said.startswith('error: command line: unknown key "rl.group_sise": did you mean "group_size"?')
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("position", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(recipe, capsys, position):
    arguments = ["train", recipe, "rl.group_sise=4"]
    arguments.insert(position, "--debug")
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "did you mean" in said


def test_errors_from_deep_inside_are_told_the_same_way(monkeypatch, recipe, capsys):
    def fail(settings, inputs):
        raise DataError("a.jsonl:17: is not valid JSON")

    replace(monkeypatch, "vlm_r1.rl.loop", train=fail)
    assert run("train", recipe) == 2
    assert capsys.readouterr().err == "error: a.jsonl:17: is not valid JSON\n"


def test_a_bug_is_not_hidden(monkeypatch, recipe):
    def fail(settings, inputs):
        raise ZeroDivisionError

    replace(monkeypatch, "vlm_r1.rl.loop", train=fail)
    with pytest.raises(ZeroDivisionError):
        main(["train", recipe])


def test_ctrl_c_says_how_to_go_on(monkeypatch, recipe, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    replace(monkeypatch, "vlm_r1.rl.loop", train=stop)
    replace(monkeypatch, "vlm_r1.eval.run", evaluate_model=stop)
    monkeypatch.setattr(sys, "argv", ["vlm-r1", "train", recipe, "run.dir=runs/my run"])
    assert run("train", recipe, "run.dir=runs/my run") == 130
    assert f"vlm-r1 train {recipe} 'run.dir=runs/my run'" in capsys.readouterr().err
    assert run("eval", recipe) == 130
    assert capsys.readouterr().err.strip() == "Stopped."


@pytest.mark.parametrize(
    ("method", "command", "right"), [("sft", "train", "vlm-r1 sft"), ("grpo", "sft", "vlm-r1 train")]
)
def test_the_wrong_command_for_a_recipe_names_the_right_one(recipe, capsys, method, command, right):
    assert run(command, recipe, f"method={method}") == 2
    assert f"has method: {method}; use: {right} {recipe}" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "method"), [("train", "grpo"), ("sft", "sft")])
def test_training_gets_the_recipe_and_ends_with_the_report(monkeypatch, recipe, tmp_path, capsys, command, method):
    seen = []
    replace(monkeypatch, "vlm_r1.rl.loop", train=lambda r, inputs: seen.append(("train", r)))
    replace(monkeypatch, "vlm_r1.sft.train", train=lambda r, inputs: seen.append(("sft", r)))
    replace(monkeypatch, "vlm_r1.report.html", write_report=lambda runs: runs[0] / "report.html")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "eval.json").write_text('{"before": {"held": {"mean_iou": 0.25}}, "after": {"held": {"mean_iou": 0.75}}}')
    assert run(command, recipe, f"method={method}", f"run.dir={folder}", "rl.group_size=3") == 0
    [(called, got)] = seen
    assert (called, got.rl.group_size, got.run.dir) == (command, 3, str(folder))
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"report: {folder}/report.html"
    assert any("0.250" in line and "0.750" in line for line in said)


def test_only_the_first_process_writes_the_report(monkeypatch, recipe):
    written = []
    replace(monkeypatch, "vlm_r1.rl.loop", train=lambda r, inputs: None)
    replace(monkeypatch, "vlm_r1.report.html", write_report=written.append)
    monkeypatch.setenv("RANK", "1")
    assert run("train", recipe) == 0
    assert written == []


def test_eval_needs_a_held_out_split(monkeypatch, recipe, capsys):
    seen = []

    def evaluate_model(settings, out):
        seen.append((settings.model.path, out))
        return {"held": {"n": 4, "mean_iou": 0.25}, "far": {"n": 3, "acc@0.5": 1.0}}

    replace(monkeypatch, "vlm_r1.eval.run", evaluate_model=evaluate_model)
    assert run("eval", recipe, "model.path=runs/x/final", "--out", "e.json") == 0
    assert seen == [("runs/x/final", Path("e.json"))]
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["held", "far"] in [[word.strip("┃ ") for word in row if word != "┃"] for row in rows]
    assert ["n", "4", "3"] in rows
    assert ["mean_iou", "0.2500"] in rows
    assert ["acc@0.5", "1.0000"] in rows
    assert run("eval", recipe, "data.eval={}") == 2
    assert "data.eval is empty" in capsys.readouterr().err


def test_the_other_commands_pass_their_arguments_on(monkeypatch):
    seen = []

    def note(*args, **kwargs):
        seen.append((*args, kwargs) if kwargs else args)
        return "page"

    told = {"engine": "native", "servers": (), "tools": ()}
    replace(monkeypatch, "vlm_r1.report.predict", predict=note)
    replace(monkeypatch, "vlm_r1.demo", run_demo=note)
    replace(monkeypatch, "vlm_r1.report.html", write_report=note)
    replace(monkeypatch, "vlm_r1.data.check", check_file=note)
    replace(monkeypatch, "vlm_r1.data.show", show_file=note)
    replace(monkeypatch, "vlm_r1.data.convert", convert=note)
    for line in (
        "predict tiny a.png what",
        "demo --seed 3 --steps 5",
        "report runs/a runs/b",
        "data check d.jsonl --image-root pics --task ovd",
        "data show d.jsonl -n 4",
        "data convert coco a.json b.json --out c.jsonl --option split=val --option n=3",
    ):
        assert run(*line.split()) == 0, line
    assert seen == [
        ("tiny", Path("a.png"), "what", Path("prediction.png"), "rec", None, told),
        (Path("runs/demo"), 3, 5),
        ([Path("runs/a"), Path("runs/b")],),
        (Path("d.jsonl"), Path("pics"), "ovd"),
        (Path("d.jsonl"), Path("samples.html"), 4, None, 0),
        ("coco", [Path("a.json"), Path("b.json")], Path("c.jsonl"), {"split": "val", "n": 3}),
    ]


def test_predict_wants_the_engine_that_a_server_belongs_to(capsys):
    assert run("predict", "tiny", "a.png", "what", "--server", "http://127.0.0.1:1") == 2
    assert "--server: names a vLLM server; add --engine vllm" in capsys.readouterr().err


def test_score_sorts_options_by_reward(monkeypatch, capsys):
    seen = []
    summary = SimpleNamespace(rows=3, means={"iou": 0.5, "f": None}, scorable={"iou": 2, "f": 0}, counts={"late": 1})
    replace(monkeypatch, "vlm_r1.rewards.score_file", score_file=lambda *args: seen.append(args) or summary)
    line = "score a.jsonl --reward iou --reward my.rewards:f --option iou.threshold=0.5 --option my.rewards:f.x=a"
    assert run(*line.split()) == 0
    options = {"iou": {"threshold": 0.5}, "my.rewards:f": {"x": "a"}}
    assert seen == [(Path("a.jsonl"), ["iou", "my.rewards:f"], None, options)]
    told = ["iou: mean 0.5000 (2 of 3 rows scored)", "f: no row can be scored (0 of 3 rows scored)", "late: 1"]
    assert capsys.readouterr().err.splitlines() == told
    assert run("score", "a.jsonl", "--reward", "iou", "--option", "threshold=1") == 2
    assert "names no reward" in capsys.readouterr().err
    assert run("score", "a.jsonl", "--reward", "iou", "--option", "threshold") == 2
    assert "write KEY=VALUE" in capsys.readouterr().err


def test_a_data_file_is_checked_for_real(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    good = '{"problem": "the cat", "solution": [1, 2, 3, 4], "image": "none.png"}\n'
    file.write_text(good * 16 + "{broken\n")
    assert run("data", "check", str(file)) == 2
    said = capsys.readouterr()
    assert "rows.jsonl:17" in said.out + said.err
    assert "Traceback" not in said.err


def test_options_that_are_arguments_are_refused(capsys):
    assert run("data", "convert", "coco", "a.json", "--out", "b.jsonl", "--option", "out=c.jsonl") == 2
    assert "--option out: is not an option" in capsys.readouterr().err
