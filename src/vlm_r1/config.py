"""Every setting, with its unit and its reason. Nothing here imports torch: a typo answers in under a second.

A recipe is a YAML file with these sections; `config_file.load_config` reads it, applies dotted overrides and
reports a wrong key with the file, the line and the nearest valid key.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlm_r1.config_rollout import EnvConfig, RolloutConfig
from vlm_r1.config_run import EvalConfig, RunConfig
from vlm_r1.config_section import Section, renamed, without
from vlm_r1.errors import nearest


class ScenesSource(Section):
    """Generated scenes: exact boxes, no files. Splits are disjoint seed ranges."""

    old_names: ClassVar[dict[str, str]] = {"per_picture": "per_image"}

    split: Literal["base", "train", "in_domain", "out_of_domain", "tune"] = Field(
        "train",
        description="which range of seeds; no image is in two splits (tune: to choose settings by, so that the "
        "others stay unseen)",
    )
    n: int = Field(1000, gt=0, le=1 << 32, description="number of images; a split owns 2**32 seeds")
    start: int = Field(0, ge=0, lt=1 << 32, description="number of the first image: another one is another set")
    difficulty: Literal["mixed", "easy", "small", "hard"] = Field(
        "mixed",
        description="easy: 3 large objects that differ in color and shape; small: 3 to 6 small ones; hard: 6 to 8 "
        "small ones of 3 colors and 2 shapes; mixed: 3 to 6 objects of any size and kind",
    )
    scale: int = Field(
        1, ge=1, le=16, description="how many times 96 pixels the side of an image has; enlarged objects carry marks"
    )
    frames: int = Field(
        1, ge=1, le=256, description="frames of a video, half a second apart, for the question kind when"
    )
    questions: dict[str, float] = Field(
        default={"attribute": 1.0}, description="question kind -> weight; kinds are listed by `data.scenes.KINDS`"
    )
    per_image: int = Field(1, gt=0, description="questions asked about each image")
    absent: float = Field(
        1.0, ge=0, le=1, description="share of detect questions that also name one or two kinds which are not there"
    )
    loosen: float = Field(0.0, ge=0, le=1, description="push each side of a true box outward by up to this share")
    label_noise: float = Field(
        0.0, ge=0, le=1, description="share of true boxes that are put around another object: wrong annotations"
    )

    @model_validator(mode="after")
    def _within_the_split(self) -> ScenesSource:
        if self.start + self.n > 1 << 32:
            raise ValueError("start + n goes beyond the 2**32 images of a split; make one of them smaller")
        return self


class DataSource(Section):
    """One source of samples: exactly one of `scenes`, `path`, `hub`."""

    scenes: ScenesSource | None = Field(None, description="generated images with questions about them")
    path: str | None = Field(None, description="a JSONL, JSON or Parquet file")
    hub: str | None = Field(None, description="a data set on the Hugging Face hub")
    hub_split: str = Field("train", description="the split of that data set")
    image_root: str | None = Field(None, description="folder that relative image paths start from")
    task: str | None = Field(None, description="the task of rows that do not name one: rec, ovd, count, choice, ...")
    sampling: str = Field(
        "all", description='"all", "first:N", "end:N", "random:N", or with a percentage: "random:10%"'
    )
    max_frames: int = Field(16, gt=0, le=4096, description="frames that are taken of a row's clip, spread evenly")
    negatives: int = Field(0, ge=0, description="absent descriptions to add to each detection question")
    weight: float = Field(1.0, gt=0, description="share of this source in a mixture")

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if sum(x is not None for x in (self.scenes, self.path, self.hub)) != 1:
            raise ValueError("give exactly one of scenes, path, hub")
        return self


class DataConfig(Section):
    """What is trained on and what is held out."""

    train: list[DataSource] = Field(default_factory=list, description="sources that are mixed by their weights")
    eval: dict[str, DataSource] = Field(default_factory=dict, description="split name -> held-out source")


class ModelConfig(Section):
    """Which model, and how it is loaded."""

    path: str = Field("tiny", description='a folder, a hub id, or "tiny" for the model shipped with the package')
    init: Literal["pretrained", "scratch"] = Field("pretrained", description="load weights, or start from random ones")
    scratch: dict[str, Any] | None = Field(None, description="with init: scratch, the transformers configuration")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="what the model computes in; auto: bfloat16 on a GPU, else float32. Trained weights, gradients and "
        "moments are float32 in any case",
    )
    min_pixels: int | None = Field(None, gt=0, description="smallest image the model is shown, in pixels")
    max_pixels: int | None = Field(None, gt=0, description="largest image the model is shown, in pixels")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="compute activations again in the backward pass; auto: where a GPU's plan does not fit without",
    )
    attention: Literal["auto", "flash", "sdpa"] = Field(
        "auto",
        description="attention of the language model; auto: flash where it works (CPU; GPU in bfloat16), else sdpa",
    )
    compile: bool = Field(False, description="torch.compile every layer of tower and language model; slower on a CPU")
    quantize: Literal["none", "nf4", "int8"] = Field(
        "none", description="load the language model's linear layers in 4 or 8 bits (bitsandbytes); trained with lora"
    )
    logprob_kernel: Literal["torch", "liger"] = Field(
        "torch", description="what computes log-probs of a vocabulary in an update; liger: liger-kernel (extra `liger`)"
    )
    vision_cache_mb: int = Field(2048, ge=0, description="MiB of CPU memory for a frozen tower's output; 0: none")
    vision_cache_dir: str | None = Field(None, description="also keep that in this folder, for later runs")
    trust_remote_code: bool = Field(False, description="run code that comes with the model; only if you read it")

    @model_validator(mode="before")
    @classmethod
    def _old_names(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.keys() & {"dtype", "autocast"}:
            low = "bfloat16" in (values.get("dtype"), "bfloat16" if values.get("autocast") == "bf16" else None)
            values = {k: v for k, v in values.items() if k not in ("dtype", "autocast")}
            values.setdefault("precision", "bfloat16" if low else "float32")
            renamed("model.dtype and model.autocast are one key", f"model.precision: {values['precision']}")
        return values

    @model_validator(mode="after")
    def _weights_to_quantize(self) -> ModelConfig:
        if self.quantize != "none" and self.init == "scratch":
            raise ValueError("init: scratch has no weights to quantize; remove the key quantize")
        return self


HOW = ("full", "frozen", "lora", "last_N")
_CHOICES = "full, frozen, lora, or last_N for the last N blocks; default: full, or frozen where another part has lora"


class TrainConfig(Section):
    """Which parts of the model are trained."""

    vision: str | None = Field(None, description=f"the vision tower: {_CHOICES}")
    connector: str | None = Field(
        None, description="what lies between tower and language model; as for vision, without last_N"
    )
    language: str | None = Field(None, description="the language model and its head; as for vision")

    def how(self) -> dict[Literal["vision", "connector", "language"], str]:
        """What is done with each part, defaults filled in."""
        given = {"vision": self.vision, "connector": self.connector, "language": self.language}
        default = "frozen" if "lora" in given.values() else "full"
        return {part: how or default for part, how in given.items()}  # type: ignore[misc]

    @field_validator("vision", "connector", "language")
    @classmethod
    def _known(cls, how: str | None) -> str | None:
        if how is not None and how not in HOW[:3] and not re.fullmatch(r"last_[1-9]\d*", how):
            raise ValueError(f'"{how}" is not a way to train a part; {nearest(how, HOW)}')
        return how

    @model_validator(mode="after")
    def _some_part(self) -> TrainConfig:
        how = self.how()
        if set(how.values()) == {"frozen"}:
            raise ValueError("every part is frozen: nothing would be trained")
        if "lora" in how.values() and not set(how.values()) <= {"lora", "frozen"}:
            raise ValueError(
                "beside a part with lora the others are lora or frozen: an adapter folder holds no full weights"
            )
        if (self.connector or "").startswith("last_"):
            raise ValueError("the connector has no blocks to count; use full or frozen")
        return self


class LoraConfig(Section):
    """The adapter of the parts that `train` puts at lora."""

    rank: int = Field(16, gt=0, description="of the two matrices beside each adapted layer")
    alpha: int = Field(32, gt=0, description="their product is scaled by alpha / rank; rslora: by alpha / sqrt(rank)")
    variant: Literal["lora", "rslora", "dora"] = Field("lora", description="dora also learns the size of each output")
    layers: list[str] | None = Field(
        None, description="adapt only linear layers whose own name is one of these; default: all of the part"
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="sft only: with it, the policy that RL updates is not the one that sampled"
    )


class PromptConfig(Section):
    """How a question is put."""

    template: str = Field("r1", description="a name in prompts.templates.TEMPLATES or a string with {question}")
    coordinates: Literal["family", "relative_1000", "original_pixels"] = Field(
        "family", description="the space boxes are written in; published checkpoints were trained on others"
    )


class RewardConfig(Section):
    """What a good answer is."""

    parts: dict[str, float] = Field(default={"iou": 1.0, "format": 1.0}, description="reward name -> weight")
    gate: str | None = Field(None, description="a reward that must be above 0 for the others to count")
    shadow: list[str] = Field(default_factory=list, description="rewards that are measured and not trained on")
    on_error: Literal["raise", "zero"] = Field("raise", description="what an exception inside a reward does")
    truncated: Literal["score", "zero", "skip"] = Field("score", description="an answer cut at the token limit")
    timeout_s: float = Field(30.0, gt=0, le=1e8, description="seconds that one call of one reward may take")
    options: dict[str, dict[str, Any]] = Field(default_factory=dict, description="reward name -> its keyword arguments")


class RLConfig(Section):
    """Group-relative policy optimisation."""

    algorithm: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] = Field(
        "grpo", description="a row of `rl.algorithms.ALGORITHMS`"
    )
    group_size: int = Field(8, gt=1, le=1 << 16, description="answers per prompt (G)")
    prompts_per_step: int = Field(16, gt=0, le=1 << 20, description="prompts in a step (P)")
    iterations: int = Field(1, gt=0, description="optimiser steps on each batch of rollouts (mu)")
    beta: float = Field(0.0, ge=0, description="weight of the KL divergence from the reference model")
    clip_low: float | None = Field(
        None, gt=0, description="how far below 1 a ratio counts; default: the algorithm's own (0.2, gspo 3e-4, cispo 1)"
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="how far above 1 a ratio counts; default: the algorithm's own (0.2, dapo 0.28, gspo 4e-4)",
    )
    token_budget: int = Field(
        16384, gt=0, description="tokens in one forward pass of the update; the result does not depend on it"
    )
    reference_offload: bool = Field(
        False, description="keep the reference model in CPU memory and bring each layer to the GPU when it is needed"
    )

    @model_validator(mode="before")
    @classmethod
    def _gone(cls, values: Any) -> Any:
        return without(values, "reuse_prefill", "rl.reuse_prefill is gone: the update runs its prompts itself")


class SFTConfig(Section):
    """Supervised fine-tuning."""

    old_names: ClassVar[dict[str, str]] = {"pictures_per_step": "images_per_step"}

    images_per_step: int = Field(16, gt=0, description="images (with all their questions) in a step")
    token_budget: int = Field(16384, gt=0, description="tokens in one forward pass")
    thought: float = Field(
        1.0, ge=0, le=1, description="share of targets with the sample's thought; the others' thought is empty"
    )


class OptimConfig(Section):
    """The optimiser and its schedule."""

    name: Literal["adamw", "muon", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw",
        description="muon is for training from scratch; 8bit keeps AdamW's averages in 8 bits (bitsandbytes, GPU)",
    )
    lr: float = Field(1e-6, gt=0, description="highest learning rate")
    lr_vision: float | None = Field(None, gt=0, description="of the vision tower; default: lr")
    lr_connector: float | None = Field(None, gt=0, description="of the connector; default: lr")
    weight_decay: float = Field(0.0, ge=0, description="of matrices; norms and biases are not decayed")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the mean of the gradient")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's decay of the mean of its square")
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are scaled down to this norm")
    max_skipped: int = Field(
        5,
        gt=0,
        description="updates in a row without a finite loss and gradient, all skipped, that end the run",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="after the warm-up; linear and cosine reach 0 at run.steps"
    )
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly")

    @model_validator(mode="before")
    @classmethod
    def _gone(cls, values: Any) -> Any:
        return without(values, "master_weights", "optim.master_weights is gone: trained weights are float32")


class Recipe(Section):
    """One experiment."""

    method: Literal["grpo", "sft"] = Field("grpo", description="grpo runs with `vlm-r1 train`, sft with `vlm-r1 sft`")
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig | None = None
    data: DataConfig = DataConfig()
    prompt: PromptConfig = PromptConfig()
    rollout: RolloutConfig = RolloutConfig()
    env: EnvConfig | None = None
    rewards: RewardConfig = RewardConfig()
    rl: RLConfig = RLConfig()
    sft: SFTConfig = SFTConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    run: RunConfig = RunConfig()

    @property
    def max_calls(self) -> int:
        """Calls of tools that an answer may make."""
        return self.env.max_calls if self.env else 0

    @field_validator("env", mode="before")
    @classmethod
    def _tools_alone(cls, value: Any) -> Any:
        value = [value] if isinstance(value, str) else value
        return {"tools": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _env(self) -> Recipe:
        if self.env is not None and self.rollout.engine == "replay":
            raise ValueError("rollout.engine: replay has no tables of calls; use engine: native or vllm, or remove env")
        return self

    @model_validator(mode="after")
    def _staleness(self) -> Recipe:
        if self.rollout.staleness and self.rl.algorithm == "dapo":
            raise ValueError(
                "rl.algorithm: dapo samples dynamically: it draws prompts by the answers of the same step, so none can "
                "be answered ahead; set rollout.staleness: 0, or another algorithm"
            )
        return self

    @model_validator(mode="after")
    def _lora(self) -> Recipe:
        if "lora" not in self.train.how().values():
            if self.lora is not None:
                raise ValueError("lora: no part is trained with it; set train.language: lora, or remove the section")
            return self
        if self.model.init == "scratch":
            raise ValueError("train: lora needs a base model with weights, and model.init is scratch")
        if self.rollout.engine == "vllm" and self.lora is not None and self.lora.variant == "dora":
            raise ValueError("lora.variant: dora cannot be served by vLLM; use lora or rslora, or engine: native")
        if self.method == "grpo" and self.lora is not None and self.lora.dropout:
            raise ValueError(
                "lora.dropout: the policy that is updated would not be the one that sampled the answers; use 0"
            )
        if self.rl.reference_offload:
            raise ValueError(
                "rl.reference_offload: beside lora there is no second model, the reference is this one without its "
                "adapter; remove the key"
            )
        return self
