"""`--dry-run`: what can be checked of a recipe without weights, and a sample as the model would see it."""

from __future__ import annotations

import json

from vlm_r1.config import Recipe
from vlm_r1.envs.host import open_host
from vlm_r1.eval.best import check_best
from vlm_r1.eval.outcomes import outcome
from vlm_r1.models.load import LoadedPolicy, load_policy, load_without_weights
from vlm_r1.prompts.parse import read_answer
from vlm_r1.records import Prompt, Truth
from vlm_r1.rewards.plugins import plain_truth
from vlm_r1.rewards.rubric import build_rubric
from vlm_r1.runtime.inputs import Inputs, read_inputs
from vlm_r1.sft.targets import target_text


def dry_run(recipe: Recipe, *, trains: bool = True) -> None:
    """Check a recipe; print its data, the first sample's prompt and truth, and the score of two answers.

    `trains=False` is about `data.eval` alone. Nothing is written and no weights are loaded. Raises a `UserError` where
    a run would.
    """
    inputs = read_inputs(recipe, trains=trains)
    check_best(recipe, inputs.splits)
    for number, (weight, samples) in enumerate(inputs.train):
        print(f"data.train.{number}: {len(samples)} rows, weight {weight:g}")
    for name, samples in inputs.splits.items():
        print(f"data.eval.{name}: {len(samples)} rows")
    loaded = (load_policy if recipe.model.init == "scratch" else load_without_weights)(recipe.model, recipe.prompt)
    open_host(recipe.env, loaded.family)  # prompts may tell of its tools
    _show(_first(loaded, inputs), loaded, recipe, trains)


def _first(loaded: LoadedPolicy, inputs: Inputs) -> Prompt:
    sources = [samples for _, samples in inputs.train] or list(inputs.splits.values())
    return loaded.family.encode(sources[0][0])


def _show(prompt: Prompt, loaded: LoadedPolicy, recipe: Recipe, trains: bool) -> None:
    sample = prompt.sample
    images = ", ".join(f"{width} x {height} pixels" for width, height in (image.size for image in sample.images))
    print(f"\nfirst sample: {sample.id} (task {sample.task}; {images or 'no image'})")
    print(f"prompt ({len(prompt.token_ids)} tokens with its images):\n{loaded.family.text(sample)}")
    print(f"truth (boxes in pixels): {json.dumps(plain_truth(sample.truth), ensure_ascii=False)}")
    answers = {"an empty answer": "<think></think><answer></answer>"}
    if sample.truth != Truth():
        answers = {"the truth as an answer": target_text(sample, prompt.box_map, recipe.sft.thought)} | answers
    for name, text in answers.items():
        print(f"{name}: {text}\n  {_score(prompt, text, recipe, trains)}")
    print("\nthe recipe and its data are fine; without --dry-run the model's weights are loaded and the run starts")


def _score(prompt: Prompt, text: str, recipe: Recipe, trains: bool) -> str:
    """What a text is worth as an answer: to the rewards where they train, else to the evaluation."""
    answer = read_answer(text, prompt.sample, prompt.box_map, n_tokens=len(text))
    if not trains or recipe.method == "sft":
        found = outcome(prompt.sample, answer)
        return "accuracy: nothing to compare with" if found.score is None else f"accuracy {found.score:.3g}"
    rubric = build_rubric(recipe.rewards)
    score = rubric.score(prompt.sample, answer)
    weights = rubric.weights(prompt.sample)
    parts = [
        f"{n} {'not scorable' if v is None else f'{v:.3g}'} x {weights.get(n, 0):g}" for n, v in score.parts.items()
    ]
    total = "not scorable" if score.total is None else f"{score.total:.3g}"
    return f"reward {total} = {' + '.join(parts)}"
