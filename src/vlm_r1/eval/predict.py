"""One question about one image, asked of a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from vlm_r1.config import EnvConfig, ModelConfig, Recipe, RolloutConfig, RunConfig
from vlm_r1.distributed import processes
from vlm_r1.errors import ConfigError, DataError, RowError, nearest
from vlm_r1.eval.answering import open_answering
from vlm_r1.eval.run import read_rollouts
from vlm_r1.models.load import prompt_of_model
from vlm_r1.prompts.templates import TASKS, template_text
from vlm_r1.records import Answer, Sample, SampleImage, SamplingParams, Truth
from vlm_r1.rollout.engine import awake

MAX_NEW_TOKENS = 1024


def ask(
    model: str,
    image: Path,
    question: str,
    task: str = "rec",
    template: str | None = None,
    *,
    engine: Literal["native", "vllm"] = "native",
    servers: Sequence[str] = (),
    tools: Sequence[str] = (),
) -> tuple[Sample, Answer]:
    """The greedy answer of a model to a question about an image, by itself or by a vLLM server (one that is started
    for it, or one of `servers`).

    `tools` are those of `env.tools` that the model may call. `template` defaults to the one the model was trained with,
    where its folder says so, else "r1". Raises a `UserError` for an image or model that cannot be read, or an unknown
    task, template or tool.
    """
    sample = Sample(id=str(image), images=(SampleImage(path=image),), question=question, truth=Truth(), task=task)
    if task not in TASKS:
        raise ConfigError(f'--task: unknown task "{task}": {nearest(task, TASKS)}')
    try:
        sample.images[0].open()
    except RowError as error:
        raise DataError(f"{error.faults[0].what}; give the path of an image file") from None
    prompt_config = prompt_of_model(model)
    if template is not None:
        try:
            template_text(template)
        except ConfigError as error:
            raise ConfigError(str(error).replace("prompt.template", "--template", 1)) from None
        prompt_config = prompt_config.model_copy(update={"template": template})
    with TemporaryDirectory() as folder:
        recipe = Recipe(
            model=ModelConfig(path=model),
            prompt=prompt_config,
            rollout=RolloutConfig(engine=engine, servers=list(servers), max_new_tokens=MAX_NEW_TOKENS),
            env=EnvConfig(tools=list(tools)) if tools else None,
            run=RunConfig(dir=folder),
        )
        with open_answering(recipe, processes.start()) as (loaded, opened), awake(opened):
            try:
                prompt = loaded.family.encode(sample)
            except DataError as error:
                raise DataError(str(error).removeprefix(f"sample {sample.id}: ")) from None
            sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, max_calls=recipe.max_calls)
            [group] = opened.generate([prompt], sampling, n=1)
    return sample, read_rollouts(group)[0]
