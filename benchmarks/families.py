"""What works with each model family, and how fast a step is: the table of `docs/results/families.md`.

    python benchmarks/families.py             # the tests, then the clocks
    python benchmarks/families.py --quick     # one repetition of each clock

A cell says yes where every test of it passed for that family, on a tiny random checkpoint in the published layout
(`tests/zoo`). The speed is one optimiser step on made-up answers (2 prompts with one 224 x 224 image, G = 8, 32
tokens an answer): transformers' own model on what the family's processor makes of the prompt repeated G times, over
ours; the models have 2 to 4 layers of width 32, so most of either step is calls, not arithmetic.

Writes `docs/results/families.json` and `.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from _measure import commit, machine, now, versions

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

GROUP, TOKENS, SIDE = 8, 32, 224
COLUMNS = {
    "loads": ("test_a_prompt_is_what_the_processor_makes_of_it", "test_every_parameter_belongs_to_one_part"),
    "boxes": ("test_boxes_go_to_the_models_space_and_back",),
    "rollout": ("test_rollouts_record_the_log_probs_of_the_plain_forward",),
    "exact update": ("test_the_packed_update_equals_the_plain_one",),
    "LoRA": ("test_the_packed_update_equals_the_plain_one_of_peft",),
    "frozen + cache": ("test_features_of_a_frozen_tower_are_made_once",),
    "checkpoint round trip": ("test_a_saved_model_comes_back",),
}
TEST_FILES = ("tests/models/test_zoo.py", "tests/models/test_lora.py")


def main() -> None:
    """Run the tests, time the steps, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition of each clock")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "families.json")
    arguments = parser.parse_args()
    from zoo import zoo

    entries = zoo()
    found = run_tests()
    rows = {}
    for name, entry in sorted(entries.items()):
        cells, difference = cells_of(found, name)
        rows[name] = {
            **cells,
            "multi-image": cells["exact update"] if entry.multi_image else "the family takes one image",
            "gradient_difference": difference,
            "generic": generic(entry),
            **seconds_of(entry, 1 if arguments.quick else 7),
        }
        print(name, rows[name], flush=True)
    result = {
        "families": rows,
        "command": f"python benchmarks/families.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(markdown(result), encoding="utf-8")
    print(f"written: {arguments.out} and {arguments.out.with_suffix('.md').name}")


def generic(entry: Any) -> bool:
    """Whether the model has no family of its own and runs through the generic one."""
    import zoo

    from vlm_r1.models.family import Family

    with tempfile.TemporaryDirectory() as folder:
        entry.build(Path(folder))
        return type(zoo.load(Path(folder)).family) is Family


def run_tests() -> list[dict[str, Any]]:
    """Every test case of the families: its function, its parameters, whether it passed, what it measured."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        files = [file for file in TEST_FILES if (ROOT / file).is_file()]
        command = [sys.executable, "-m", "pytest", "-q", *files, f"--junitxml={report}"]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = []
        for case in ElementTree.parse(report).iter("testcase"):
            function, _, parameters = case.attrib["name"].partition("[")
            cases.append(
                {
                    "function": function,
                    "parameters": parameters.rstrip("]"),
                    "passed": all(case.find(kind) is None for kind in ("failure", "error", "skipped")),
                    "measured": {p.attrib["name"]: float(p.attrib["value"]) for p in case.iter("property")},
                }
            )
        return cases


def cells_of(cases: list[dict[str, Any]], name: str) -> tuple[dict[str, str], float]:
    """The cells of a family, and the largest gradient difference that its tests measured."""
    mine = [c for c in cases if re.match(rf"{re.escape(name)}(-|$)", c["parameters"])]
    cells = {}
    for column, functions in COLUMNS.items():
        ran = [c for c in mine if c["function"] in functions]
        cells[column] = ("yes" if all(c["passed"] for c in ran) else "no") if ran else "not tested"
    return cells, max((value for c in mine for value in c["measured"].values()), default=float("nan"))


def seconds_of(entry: Any, repetitions: int) -> dict[str, float]:
    """Median seconds of a step of both sides, in turn, and their ratio."""
    import zoo
    from support import made_up, noise_image, sample

    from vlm_r1.models.packing import pack
    from vlm_r1.rl.batch import as_prefix_group

    with tempfile.TemporaryDirectory() as folder:
        entry.build(Path(folder))
        loaded, model = zoo.load(Path(folder)), zoo.plain(Path(folder), entry)
    samples = [sample("the red circle", noise_image(SIDE, SIDE, n), id=str(n)) for n in range(2)]
    groups = [made_up(loaded, loaded.family.encode(s), [TOKENS] * GROUP, n) for n, s in enumerate(samples)]
    row = pack([as_prefix_group(group) for group in groups])
    batches = []
    for group in groups:
        answers = torch.tensor([r.token_ids for r in group.rollouts])
        batches.append((zoo.behind(model, zoo.processor_inputs(loaded, group.prompt.sample), answers), answers))

    def ours() -> None:
        logprobs, _ = loaded.policy(row)
        logprobs.mean().backward()

    def padded() -> None:
        for inputs, answers in batches:
            logits = model(**inputs, logits_to_keep=TOKENS + 1).logits[:, :-1].float()
            logits = logits.index_fill(-1, loaded.policy.suppressed, -1e9)
            (-logits.log_softmax(-1).gather(-1, answers[..., None]).mean() / len(batches)).backward()

    sides = [(ours, loaded.policy), (padded, model)]
    optimizers = [torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True) for _, module in sides]
    seconds: list[list[float]] = [[], []]
    for repetition in range(repetitions + 1):
        for side, (step, _) in enumerate(sides):
            started = now()
            step()
            optimizers[side].step()
            optimizers[side].zero_grad()
            if repetition:  # the first is warm-up
                seconds[side].append(now() - started)
    ours_s, padded_s = (statistics.median(values) for values in seconds)
    tokens = {"prompt_tokens": float(len(groups[0].prompt.token_ids))}
    return {"ours_s": ours_s, "padded_s": padded_s, "ratio": padded_s / ours_s, **tokens}


def markdown(result: dict[str, Any]) -> str:
    """The table, from the JSON alone."""
    columns = [*COLUMNS, "multi-image"]
    lines = [
        "# Model families",
        "",
        f"Made by `{result['command']}` on {result['date']}: transformers {result['versions']['transformers']}, torch",
        f"{result['versions']['torch']}, {result['machine']['cpu']}, {result['machine']['cores']} cores. A cell says "
        "yes where every test of it passed on a tiny random checkpoint in the published layout. The difference is the",
        "largest relative one of any parameter's gradient against transformers' own forward. The speed is a whole step",
        f"beside the padded one: 2 prompts, G = {GROUP}, {TOKENS} tokens an answer; these models are so small that",
        "calls, not arithmetic, are most of it. (generic): no family of its own, run by transformers' conventions.",
        "",
        "| family | " + " | ".join(columns) + " | gradient difference | prompt tokens | padded step / ours |",
        "|" + "---|" * (len(columns) + 4),
    ]
    for name, row in result["families"].items():
        cells = " | ".join(row[column] for column in columns)
        numbers = f"{row['gradient_difference']:.1e} | {row['prompt_tokens']:.0f} | {row['ratio']:.1f} x"
        lines.append(f"| `{name}`{' (generic)' if row['generic'] else ''} | {cells} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
