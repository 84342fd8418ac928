"""TRL's side: `GRPOTrainer` on the same folder, in a process of its own. Usage: _trl.py JOB.json RESULT.json

Nothing of TRL is replaced: its methods are wrapped to note their times and their tokens, a callback notes the end of
each step, and the end-of-text token is suppressed through `generation_kwargs`, so that every answer has all its tokens.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _measure import Clock, machine, moved, now, peak_memory, snapshot, trained_dtype, versions
from _reward import by_hash
from _setting import Setting, prepare, read_job
from datasets import Dataset, Image
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from vlm_r1.models.processor import load_processor


class StepEnds(TrainerCallback):
    """The time at the end of each optimiser step, and the seconds of each phase until then."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.phases: list[dict[str, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the trainer after `optimizer.step()`."""
        self.ends.append(now())
        self.cpu.append(time.process_time())
        self.phases.append(self.clock.take())


def data_of(setting: Setting) -> Dataset:
    """The same questions and images as a conversational data set with an image column."""
    rows = [json.loads(line) for line in setting.data_path.read_text(encoding="utf-8").splitlines()]
    columns = [{"prompt": [{"role": "user", "content": row["problem"]}], "image": row["image"]} for row in rows]
    return Dataset.from_list(columns).cast_column("image", Image())


def config_of(setting: Setting, folder: str, suppressed: list[int], options: dict[str, Any]) -> GRPOConfig:
    """The benchmark's step in TRL's terms. `options`: what may be tuned, and where (`grpo_step.py`, `gpu.py`)."""
    answers = setting.prompts * setting.group
    micro = options.get("micro_batch", answers)
    full_length: dict[str, Any] = {"suppress_tokens": suppressed}
    if options.get("vllm"):
        full_length = {"ignore_eos": True, "logit_bias": dict.fromkeys(suppressed, -100.0)}
    return GRPOConfig(
        output_dir=folder,
        max_steps=setting.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=answers // micro,
        num_generations=setting.group,
        max_completion_length=setting.answer_tokens,
        generation_kwargs=full_length,
        use_vllm=options.get("vllm", False),
        use_liger_kernel=options.get("liger", False),
        cache_implementation=options.get("cache"),
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=setting.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=setting.precision == "bfloat16",
        fp16=False,
        gradient_checkpointing=options.get("gradient_checkpointing", False),
        torch_compile=options.get("torch_compile", False),
        dataloader_num_workers=options.get("workers", 0),
        dataloader_persistent_workers=bool(options.get("workers", 0)),
        dataloader_pin_memory=torch.cuda.is_available(),
        shuffle_dataset=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        seed=setting.seed,
    )


def model_options(setting: Setting, options: dict[str, Any]) -> dict[str, Any]:
    """How the model is loaded: float32 weights where they are trained, the frozen base of an adapter in `precision`.

    `fused_patches` makes the patch embedding the matrix product that it is (transformers' `fusion_config`); as a Conv3d
    it is 10 to 20 times slower on a GPU.
    """
    dtype = "float32" if setting.language == "full" else setting.precision
    found: dict[str, Any] = {"dtype": dtype, "attn_implementation": options.get("attention", "sdpa")}
    if options.get("fused_patches"):
        found["fusion_config"] = {"patch_embeddings": True}
    return found


def adapter_of(setting: Setting) -> LoraConfig | None:
    """The adapter that `recipe_of` of `_ours.py` has: rank 16 beside every linear layer of what is trained."""
    if setting.language != "lora":
        return None
    parts = r"language_model|visual\.blocks|visual\.merger" if setting.vision == "lora" else "language_model"
    return LoraConfig(r=16, lora_alpha=32, target_modules=rf"model\.({parts})\..*(proj|qkv|mlp\.[02])")


def measure(setting: Setting, options: dict[str, Any]) -> dict[str, Any]:
    """Train and return every measured step."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    torch.set_flush_denormal(True)
    processor = load_processor(setting.model_path)
    ids = json.loads(Path(setting.model_path, "config.json").read_text(encoding="utf-8"))
    suppressed = [ids["image_token_id"], ids["video_token_id"], processor.tokenizer.eos_token_id]
    clock = Clock()
    ends = StepEnds(clock)
    tokens: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(setting, folder, suppressed, options)
        config.model_init_kwargs = model_options(setting, options)
        trainer = GRPOTrainer(
            model=str(setting.model_path),
            reward_funcs=by_hash,
            args=config,
            train_dataset=data_of(setting),
            processing_class=processor,
            callbacks=[ends],
            peft_config=adapter_of(setting),
        )
        model = trainer.model
        if setting.vision == "frozen" and setting.language == "full":
            model.model.visual.requires_grad_(False)
        before = snapshot(model)
        _watch(trainer, clock, tokens, setting.group)
        trainer.train()
    steps = []
    for i in range(setting.warmup, setting.steps - 1):
        phase, step_s = ends.phases[i], ends.ends[i] - ends.ends[i - 1]
        rest = {name: phase.get(name, 0.0) for name in ("data_s", "rollout_s", "reward_s", "prepare_s")}
        cpu_s = ends.cpu[i] - ends.cpu[i - 1]
        steps.append({"step_s": step_s, "cpu_s": cpu_s, **rest, "update_s": step_s - sum(rest.values()), **tokens[i]})
    return {
        "steps": steps,
        "moved": moved(model, before),
        "attention": {
            "text": model.config.text_config._attn_implementation,
            "vision": model.config.vision_config._attn_implementation,
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "optimizer": type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
        "dtype": trained_dtype(model),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "settings": options,
        "machine": machine(),
        **peak_memory(),
    }


def _watch(trainer: Any, clock: Clock, tokens: list[dict[str, int]], group: int) -> None:
    """Note the time of fetching, preparing, generating and scoring, and the tokens of each step."""
    generate = trainer._generate_single_turn

    def counted(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        completions, logprobs = generate(prompt_ids, *args, **kwargs)
        answers = sum(len(c) for c in completions)
        # Each prompt stands here `group` times; the work is counted as for a prompt that is there once.
        prompts = sum(len(p) for p in prompt_ids) // group
        tokens.append({"prompt_tokens": prompts, "answer_tokens": answers, "updated_answer_tokens": answers})
        return completions, logprobs

    trainer._generate_single_turn = clock.wrap("rollout_s", counted)
    trainer._calculate_rewards = clock.wrap("reward_s", trainer._calculate_rewards)
    trainer._prepare_inputs = clock.wrap("prepare_s", trainer._prepare_inputs)
    trainer.get_batch_samples = clock.wrap("data_s", trainer.get_batch_samples)


if __name__ == "__main__":
    given, rest = read_job(sys.argv[1])
    prepare(given)
    Path(sys.argv[2]).write_text(json.dumps(measure(given, rest.get("options", {}))), encoding="utf-8")
