"""One GRPO step of ours beside TRL's, on the same model, images and questions.

    make bench                                      # the headline; grpo_sweep.py has other sizes
    python benchmarks/grpo_step.py --quick          # does it run?
    python benchmarks/grpo_step.py --model 3b       # on a GPU: Qwen2.5-VL-3B's size, random weights, bfloat16 compute

Each side runs alone in a process of its own, in turn, over three rounds or more; nothing else should be running. TRL
is tuned first: its settings are tried one after another and the fastest is kept. What both sides did is counted and
asserted equal.

TRL 1.16.0 comes with `make setup-bench`; it changes no other package, so any folder on PYTHONPATH that holds it will do
(`pip install --no-deps --target FOLDER trl==1.16.0`).

Writes `docs/results/grpo_step.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from _arithmetic import limits, predicted
from _measure import commit, machine, run_process
from _page import markdown
from _setting import Setting, prepare

ROOT = Path(__file__).resolve().parent.parent
SAME = ("parameters", "trained", "dtype", "optimizer", "threads")
TIMEOUT_S = 3600.0

TOGGLES: tuple[dict[str, Any], ...] = (
    {"workers": 1},
    {"cache": "static"},
    {"cache": "static", "torch_compile": True},
    {"fused_patches": True},
)
"""Settings of TRL tried on top of its fastest micro-batch, one after another; each that helps is kept."""


def main() -> None:
    """Measure, write, and say where."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        setting = setting_of(arguments, folder)
        prepare(setting)
        result = headline(setting, arguments)
        if not arguments.no_overhead:
            result["overhead"] = overhead(setting, arguments.overhead_model)
    write(result, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, two steps, no tuning: only to see it run")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs, in turn; 3 at least")
    parser.add_argument("--repetitions", type=int, default=5, help="measured steps in each round")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; default: all cores")
    parser.add_argument("--model", choices=("tiny", "3b"), default="tiny")
    parser.add_argument("--no-overhead", action="store_true", help="leave out the measurement at the demo's size")
    parser.add_argument("--overhead-model", default=None, help="model for it; default: random weights, full answers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="folder for the results")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error("--rounds: a median and its spread take 3 at least")
    return arguments


def setting_of(arguments: argparse.Namespace, folder: str) -> Setting:
    """The headline's setting."""
    return Setting(
        folder=folder,
        model=arguments.model,
        precision="bfloat16" if arguments.model == "3b" else "float32",
        warmup=1 if arguments.quick else 2,
        repetitions=2 if arguments.quick else arguments.repetitions,
        threads=arguments.threads,
    )


def run_side(script: str, setting: Setting, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """One process of one side; what it wrote, or its error."""
    folder = Path(setting.folder)
    setting.write(folder / "job.json", options=options or {})
    return run_process(script, folder / "job.json", folder / "result.json", TIMEOUT_S)


def headline(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Tune TRL, then run both sides in turn, and compare."""
    best, tried = tune(setting, arguments.quick)
    rounds = 1 if arguments.quick else arguments.rounds
    ours: list[dict[str, Any]] = []
    trl: list[dict[str, Any]] = []
    for number in range(rounds):
        ours.append(required("ours", run_side("_ours.py", setting)))
        trl.append(required("TRL", run_side("_trl.py", setting, best)))
        say(f"round {number + 1}: ours {median_step(ours[-1]):.3f} s, TRL {median_step(trl[-1]):.3f} s")
    assert_equal_work(setting, ours, trl)
    first, second = joined(ours), joined(trl)
    prompt_tokens = round(ours[0]["steps"][0]["prompt_tokens"] / setting.prompts)
    return {
        "benchmark": "grpo_step",
        "ratio_vs_trl": second["median"]["step_s"] / first["median"]["step_s"],
        "ratio_of_rounds": [b["step_s"] / a["step_s"] for a, b in zip(first["rounds"], second["rounds"], strict=True)],
        "ratio_rollout": second["median"]["rollout_s"] / first["median"]["rollout_s"],
        "ratio_update": second["median"]["update_s"] / first["median"]["update_s"],
        "setting": {
            "model": setting.model,
            "prompts": setting.prompts,
            "group": setting.group,
            "image_size": list(setting.size),
            "image_tokens": setting.image_tokens,
            "prompt_tokens_each": prompt_tokens,
            "answer_tokens": setting.answer_tokens,
            "warmup_steps": setting.warmup,
            "precision": setting.precision,
        },
        "machine": machine() | {"threads": ours[0]["threads"]},
        "versions": ours[0]["versions"] | trl[0]["versions"],
        "commit": commit(),
        "command": command_of(arguments),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "ours": first,
        "trl": second | {"tried": tried},
        "arithmetic": limits(setting, prompt_tokens),
        "predicted": predicted(),
    }


def command_of(arguments: argparse.Namespace) -> str:
    """The command as another person would type it."""
    flags = [f"--{name.replace('_', '-')}" for name in ("quick", "no_overhead") if getattr(arguments, name)]
    flags += [f"--model {arguments.model}"] if arguments.model != "tiny" else []
    flags += [f"--threads {arguments.threads}"] if arguments.threads else []
    return " ".join(["python benchmarks/grpo_step.py", *flags])


def tune(setting: Setting, quick: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """TRL's fastest settings here, and all that were tried with their times or errors."""
    answers = setting.prompts * setting.group
    sizes = [answers] if quick else [n for n in (answers, answers // 2, answers // 4, answers // 8, answers // 16) if n]
    tried: list[dict[str, Any]] = []

    def attempt(options: dict[str, Any]) -> float:
        result = run_side("_trl.py", setting.changed(repetitions=2), options)
        seconds = median_step(result) if "steps" in result else None
        tried.append({"settings": options, "step_s": seconds, "error": result.get("error")})
        say(f"TRL with {options}: {result['error'] if seconds is None else f'{seconds:.3f} s'}")
        return float("inf") if seconds is None else seconds

    times = {size: attempt({"micro_batch": size}) for size in sizes}
    best: dict[str, Any] = {"micro_batch": min(times, key=lambda size: times[size])}
    fastest = min(times.values())
    if fastest == float("inf"):
        raise SystemExit(f"TRL runs with none of the settings tried: {tried}")
    for toggle in () if quick else TOGGLES:
        seconds = attempt(best | toggle)
        if seconds < fastest:
            best, fastest = best | toggle, seconds
    return best, tried


def required(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """A result that must be there."""
    if "error" in result:
        raise SystemExit(f"{name} did not run: {result['error']}")
    return result


def assert_equal_work(setting: Setting, ours: list[dict[str, Any]], trl: list[dict[str, Any]]) -> None:
    """Both sides did the same: tokens of every step, trained parameters, number format, optimiser, threads."""
    assert trl[0]["attention"] == {"text": "sdpa", "vision": "sdpa"}, trl[0]["attention"]  # ours calls SDPA itself
    for result in (*ours, *trl):
        for key in SAME:
            assert result[key] == ours[0][key], f"{key}: {result[key]} and {ours[0][key]} are compared"
        for step in result["steps"]:
            full = setting.prompts * setting.group * setting.answer_tokens
            assert step["answer_tokens"] == step["updated_answer_tokens"] == full, f"answers are cut: {step}"
            assert step["prompt_tokens"] == ours[0]["steps"][0]["prompt_tokens"], f"prompts differ: {step}"
        assert min(result["moved"].values()) > 0, f"a part of the model was not trained: {result['moved']}"


def joined(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Several rounds of one side: all steps, the medians of each round and of the rounds, the largest memory."""
    steps = [{**step, "round": n} for n, result in enumerate(results) for step in result["steps"]]
    phases = [name for name in steps[0] if name.endswith("_s")]
    kept = ("moved", "attention", "parameters", "trained", "optimizer", "dtype", "settings")
    peaks = {name: max(r[name] for r in results) for name in results[0] if name.startswith("peak_")}
    rounds = [{name: statistics.median(step[name] for step in r["steps"]) for name in phases} for r in results]
    median = {name: statistics.median(one[name] for one in rounds) for name in phases}
    return {"median": median, "rounds": rounds, **peaks, **{name: results[0][name] for name in kept}, "steps": steps}


def median_step(result: dict[str, Any]) -> float:
    """Median step time of one process."""
    return statistics.median(step["step_s"] for step in result["steps"])


def overhead(setting: Setting, model: str | None) -> dict[str, Any]:
    """The share of a step outside forward, backward and optimiser at the demo's size."""
    folder = Path(setting.folder)
    job = {"warmup": setting.warmup, "repetitions": setting.repetitions, "model": model, "threads": setting.threads}
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    result = run_process("_overhead.py", folder / "job.json", folder / "result.json", TIMEOUT_S)
    say(f"overhead: {result.get('overhead_share', result.get('error'))}")
    return result


def write(result: dict[str, Any], out: Path) -> None:
    """The JSON file, and the page and plot made from it."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "grpo_step.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "grpo_step.md").write_text(markdown(result), encoding="utf-8")
    say(f"TRL's step takes {result['ratio_vs_trl']:.2f} times as long; see {out / 'grpo_step.md'}")


def say(text: str) -> None:
    """Progress, at once."""
    print(text, flush=True)


if __name__ == "__main__":
    main()
