"""One question about one picture: what the model thinks, what it answers, and where its boxes are."""

from __future__ import annotations

from pathlib import Path

from vlm_r1.config import ModelConfig, RolloutConfig
from vlm_r1.errors import UserError
from vlm_r1.eval.run import read_rollouts
from vlm_r1.models.load import load_policy, prompt_of_model
from vlm_r1.prompts.templates import task_of
from vlm_r1.records import Answer, LabelledBox, Picture, Sample, Truth
from vlm_r1.report.draw import draw_boxes
from vlm_r1.rollout.native import generate

MAX_NEW_TOKENS = 1024


def ask(
    model: str, image: Path, question: str, task: str = "rec", template: str | None = None
) -> tuple[Sample, Answer]:
    """The greedy answer of a model to a question about a picture.

    `template` defaults to the one the model was trained with, where its folder says so, else "r1". Raises a `UserError`
    for a picture or model that cannot be read, or an unknown task or template.
    """
    sample = Sample(id=str(image), images=(Picture(path=image),), question=question, truth=Truth(), task=task)
    task_of(sample)
    prompt_config = prompt_of_model(model)
    if template is not None:
        prompt_config = prompt_config.model_copy(update={"template": template})
    loaded = load_policy(ModelConfig(path=model), prompt_config)
    loaded.policy.eval()
    prompt = loaded.family.encode(sample)
    group = generate(loaded, [prompt], 1, RolloutConfig(max_new_tokens=MAX_NEW_TOKENS), seed=None)[0]
    return sample, read_rollouts(group)[0]


def predict(
    model: str, image: Path, question: str, out: Path, task: str = "rec", template: str | None = None
) -> Answer:
    """`vlm-r1 predict`: print thinking and answer, and write the picture with the answer's boxes to `out`."""
    sample, answer = ask(model, image, question, task, template)
    print(f"think:  {answer.think if answer.think is not None else '(none)'}")
    print(f"answer: {answer.text if answer.text is not None else answer.raw}")
    if answer.failure is not None:
        print(f"        which cannot be read as an answer: {answer.failure.kind} {answer.failure.detail}".rstrip())
    boxes = answer.value if isinstance(answer.value, tuple) else ()
    for found in boxes:
        x1, y1, x2, y2 = found.box
        label = f"{found.label}: " if found.label else ""
        print(f"box:    {label}({x1:.1f}, {y1:.1f}, {x2:.1f}, {y2:.1f}) in pixels of the picture")
    named = [b if b.label else LabelledBox(box=b.box, label=question if len(boxes) == 1 else "") for b in boxes]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_boxes(sample.images[0].open(), predicted=named).save(out)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out {out}: cannot be written ({error}); name a .png or .jpg file in a writable folder"
        ) from None
    print(f"drawn:  {out}")
    return answer
