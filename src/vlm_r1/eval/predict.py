"""One question about one picture, asked of a model folder."""

from __future__ import annotations

from pathlib import Path

from vlm_r1.config import ModelConfig
from vlm_r1.distributed.processes import local_device
from vlm_r1.eval.run import read_rollouts
from vlm_r1.models.load import load_policy, prompt_of_model
from vlm_r1.prompts.templates import task_of
from vlm_r1.records import Answer, Picture, Sample, SamplingParams, Truth
from vlm_r1.rollout.engine import awake
from vlm_r1.rollout.native import NativeEngine

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
    loaded.policy.to(local_device())
    prompt = loaded.family.encode(sample)
    with awake(NativeEngine(loaded)) as engine:
        [group] = engine.generate([prompt], SamplingParams(max_new_tokens=MAX_NEW_TOKENS), n=1)
    return sample, read_rollouts(group)[0]
