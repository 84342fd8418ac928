"""Shared builders: tiny models of both families, images, prompts, made-up answers, recipes, and the plain forward.

The plain forward is transformers' own model with its own attention over padded rows: it shares no code with packing.
"""

import contextlib
import copy
import dataclasses
import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from vlm_r1.config import ModelConfig, PromptConfig, Recipe, RolloutConfig
from vlm_r1.config_file import resolved_yaml
from vlm_r1.models import shared_prefix
from vlm_r1.models.load import LoadedPolicy, load_policy
from vlm_r1.models.packing import PackedRow, pack
from vlm_r1.records import LabelledBox, Prompt, Rollout, RolloutGroup, Sample, SampleImage, SamplingParams, Truth
from vlm_r1.rl import reference
from vlm_r1.rl.batch import as_prefix_group
from vlm_r1.rollout.native import NativeEngine
from vlm_r1.runtime.model_folder import save_model
from vlm_r1.runtime.runlog import read_metrics

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
PLAIN = PromptConfig(template="plain")


def scratch(family: str = "qwen3_vl") -> dict:
    """`model.scratch` of a model of about 140,000 parameters."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.1}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
    }
    vision |= {"out_hidden_size": 32, "initializer_range": 0.1}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
    if family == "qwen3_vl":
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
        text |= {"rope_parameters": rope | {"mrope_interleaved": True}}
        vision |= {"num_position_embeddings": 144, "deepstack_visual_indexes": [0, 1]}
    else:
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": rope}
        vision |= {"window_size": 32, "fullatt_block_indexes": [1]}
    return {"model_type": family, "vocab_size": 400, "text_config": text, "vision_config": vision}


@cache
def _built(family: str) -> LoadedPolicy:
    config = ModelConfig(init="scratch", scratch=scratch(family), precision="float32")
    loaded = load_policy(config, PLAIN, seed=7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and norms start equal: give every parameter a gradient of its own
        for parameter in loaded.policy.parameters():
            if parameter.ndim < 2:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return loaded


def tiny(
    family: str = "qwen3_vl",
    *,
    checkpointing: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LoadedPolicy:
    """A tiny policy of its own (equal weights each time), computing in `dtype`."""
    loaded = _built(family)
    policy = placed(copy.deepcopy(loaded.policy), device, dtype)
    policy.compute_dtype = dtype
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    return dataclasses.replace(loaded, policy=policy)


MULTIPLE = 3.0
"""How many times the difference of two summation orders packed rows may be away."""
BACKENDS = shared_prefix.BACKENDS
"""The attention back-ends of packed rows."""


def attending(loaded: LoadedPolicy, backend: str) -> LoadedPolicy:
    """The same policy with the attention kernels of `model.attention`."""
    loaded.policy.model.set_attn_implementation({"text_config": shared_prefix.NAMES[backend]})
    return loaded


def placed(module, device: torch.device | str, dtype: torch.dtype):
    """The module on a device with parameters of a type; buffers (rotary frequencies) keep theirs, as when loaded."""
    for parameter in module.to(device).parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def save_tiny(folder: Path, family: str = "qwen3_vl") -> Path:
    """The tiny model as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    loaded = _built(family)
    save_model(folder, loaded.policy.model, loaded.processor, PLAIN)
    return folder


TALKER = (
    "from vlm_r1.envs import Reply\n"
    "class Talker:\n"
    "    def instructions(self, max_calls):\n"
    "        return ''\n"
    "    def begin(self, seen):\n"
    "        return [{'seen': one, 'calls': 0} for one in seen]\n"
    "    def step(self, state, text):\n"
    "        state['calls'] += 1\n"
    "        if len(text) % 5 == 4:\n"
    "            return None\n"
    "        image = state['seen'].image\n"
    "        size = 32 * (1 + len(text) % 2), 32\n"
    "        return Reply(text=f'call {state[\"calls\"]}', image=image.resize(size) if len(text) % 3 else None)\n"
    "    def score(self, states, texts):\n"
    "        return [len(text) % 3 / 2 for text in texts]\n"
)
"""An environment that answers most of what stops."""


def talkative(model: Path, folder: Path) -> tuple[Path, Path]:
    """A copy of a tiny model folder whose texts soon stop, and a file with `Talker`."""
    shutil.copytree(model, folder / "talkative")
    file = folder / "talkative" / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"eos_token_id": list(range(11, 400, 8))}))
    (folder / "talker.py").write_text(TALKER)
    return folder / "talkative", folder / "talker.py"


def noise_image(width: int, height: int, seed: int = 0) -> SampleImage:
    """An image of noise."""
    rng = np.random.default_rng([seed, width, height])
    return SampleImage(image=Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)))


def sample(question: str = "the red circle", *images: SampleImage, **fields) -> Sample:
    """A sample about these images."""
    truth = fields.pop("truth", Truth(boxes=(LabelledBox(box=(8.0, 8.0, 24.0, 24.0)),)))
    return Sample(id=fields.pop("id", "s"), question=question, images=images, truth=truth, **fields)


def mixed_prompts(loaded: LoadedPolicy) -> list[Prompt]:
    """Four prompts of different lengths, with one image, none, two and three; all images have different sizes."""
    samples = [
        sample("the red circle", noise_image(48, 32)),
        sample("how many?"),
        sample("the largest blue square of both", noise_image(32, 64, 1), noise_image(64, 48, 2)),
        sample("the small triangle left of it", noise_image(96, 16, 3), noise_image(16, 48, 4), noise_image(32, 32, 5)),
    ]
    return [dataclasses.replace(loaded.family.encode(s), number=number) for number, s in enumerate(samples)]


def answered(
    loaded: LoadedPolicy, prompts: Sequence[Prompt], n: int, *, seed: int | None, watch=None, limits=None, **sampling
) -> list[RolloutGroup]:
    """`n` answers of the native engine to each prompt; `limits` are settings of `rollout` that cut the work."""
    engine = NativeEngine(loaded, RolloutConfig(**(limits or {})))
    settings = SamplingParams(seed=None if seed is None else (seed,), **sampling)
    return list(engine.generate(prompts, settings, n=n, watch=watch))


class Scripted:
    """An engine that writes `text_of(prompt, number of the answer)`, two tokens each; `asked` keeps its calls."""

    def __init__(self, text_of) -> None:
        self.text_of, self.asked = text_of, []

    def generate(self, prompts, sampling, *, n):
        self.asked.append(([prompt.sample.id for prompt in prompts], sampling, n))
        for prompt in prompts:
            texts = [self.text_of(prompt, answer) for answer in range(n)]
            rollouts = [Rollout(token_ids=(1, 2), logprobs=(-1.0, -1.0), text=text, finish="stop") for text in texts]
            yield RolloutGroup(prompt=prompt, rollouts=tuple(rollouts), sampling=sampling)

    def sync(self, weights, version):
        """Nothing to take over."""

    def wake(self):
        """Nothing to get ready."""

    def sleep(self):
        """Nothing to give back."""


def made_up(loaded: LoadedPolicy, prompt: Prompt, lengths: Sequence[int], seed: int = 0) -> RolloutGroup:
    """A group of answers of these lengths, every allowed token being equally likely."""
    generator = torch.Generator().manual_seed(seed)
    allowed = [i for i in range(len(loaded.tokenizer)) if i not in loaded.policy.suppressed.tolist()]
    rollouts = []
    for length in lengths:
        ids = [allowed[i] for i in torch.randint(len(allowed), (length,), generator=generator).tolist()]
        rollouts.append(Rollout(token_ids=tuple(ids), logprobs=(0.0,) * length, text="", finish="length"))
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))


def mixed_groups(loaded: LoadedPolicy) -> list[RolloutGroup]:
    """The mixed prompts with answers of 1 to 9 tokens."""
    lengths = [(1, 5, 3), (4, 1, 7), (2, 9, 6), (8, 3, 3)]
    return [made_up(loaded, p, n, i) for i, (p, n) in enumerate(zip(mixed_prompts(loaded), lengths, strict=True))]


def row_of(loaded: LoadedPolicy, groups: Sequence[RolloutGroup]) -> PackedRow:
    """The groups as one packed row on the policy's device."""
    return pack([as_prefix_group(group) for group in groups]).to(loaded.policy.suppressed.device)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer without the tags: every byte is a token, and ">\\n" is one too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<eos>", ">Ċ"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[(">", "Ċ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", clean_up_tokenization_spaces=False)


def plain_model(loaded: LoadedPolicy, dtype: torch.dtype | None = None):
    """The same weights in an unmodified transformers model with its own attention, on the same device.

    `dtype` is that of its weights; default: the policy's.
    """
    config = copy.deepcopy(loaded.policy.model.config)
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = "sdpa"
    model = AutoModelForImageTextToText.from_config(config)
    model.load_state_dict(loaded.policy.model.state_dict())
    return placed(model, loaded.policy.suppressed.device, dtype or loaded.policy.compute_dtype).eval()


def plain_inputs(model, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], pad: int) -> dict:
    """A padded batch as trainers make it, on the model's device: prompts padded on the left, answers on the right."""
    left, right = max(len(p.token_ids) for p in prompts), max(len(a) for a in answers)
    ids = torch.full((len(prompts), left + right), pad)
    mask = torch.zeros_like(ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, stop = left - len(prompt.token_ids), left + len(answer)
        ids[row, start:stop] = torch.tensor([*prompt.token_ids, *answer])
        mask[row, start:stop] = 1
    dtype = next(model.parameters()).dtype
    vision = [image.tensors for p in prompts for image in p.images]
    tensors = {name: torch.cat([v[name] for v in vision]) for name in vision[0]} if vision else {}
    tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    kinds = (ids == model.config.image_token_id).int()
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, **tensors}
    return {name: value.to(model.device) for name, value in inputs.items()}


def plain_logprobs(model, groups: Sequence[RolloutGroup], suppressed: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs `(S,)` of all answers' tokens by the padded forward: suppressed logits at minus infinity, then softmax.

    They are on the CPU, whatever the model's device.
    """
    rows = [(group.prompt, rollout.token_ids) for group in groups for rollout in group.rollouts]
    left = max(len(prompt.token_ids) for prompt, _ in rows)
    logits = model(**plain_inputs(model, [p for p, _ in rows], [a for _, a in rows], pad=0)).logits
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    logits[..., suppressed] = -torch.inf
    logprobs = torch.log_softmax(logits / temperature, -1).cpu()
    parts = []
    for row, (_, answer) in enumerate(rows):
        before = logprobs[row, left - 1 : left - 1 + len(answer)]
        parts.append(before.gather(-1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(parts)


def gradients(module) -> dict[str, torch.Tensor]:
    """Name -> gradient on the CPU, zeros where there is none; the gradients are cleared."""
    found = {
        n: (torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()).cpu()
        for n, p in module.named_parameters()
    }
    module.zero_grad()
    return found


def assert_same_gradients(ours: dict, theirs: dict, relative: float = 1e-4) -> float:
    """Every parameter's gradient within `relative` of its norm; leading "model." in names does not count.

    Returns the largest relative difference found, over parameters whose gradient is not noise around zero.
    """
    ours, theirs = ({re.sub(r"^(model\.)+", "", name): g for name, g in found.items()} for found in (ours, theirs))
    assert ours.keys() == theirs.keys()
    scale = max(float(value.norm()) for value in theirs.values())
    largest = 0.0
    for name, value in theirs.items():
        error, norm = float((ours[name].to(value.dtype) - value).norm()), float(value.norm())
        assert error <= relative * norm + 1e-7 * scale, f"{name}: off by {error} of {norm}"
        largest = max(largest, error / norm if norm > 1e-5 * scale else 0.0)
    return largest


def recipe(model: Path, run_dir: Path, method: str = "grpo", /, **sections) -> Recipe:
    """A recipe of a few short steps on scenes with the tiny model; sections are merged over it."""
    base: dict = {
        "method": method,
        "model": {"path": str(model)},
        "data": {"train": [{"scenes": {"split": "train", "n": 12, "per_image": 2 if method == "sft" else 1}}]},
        "prompt": {"template": "plain"},
        "rollout": {"max_new_tokens": 6},
        "rewards": {"parts": {"repetition": 1.0, "format": 1.0}},
        "rl": {"group_size": 3, "prompts_per_step": 2},
        "sft": {"images_per_step": 2},
        "optim": {"lr": 1e-3},
        "run": {"dir": str(run_dir), "steps": 2, "save_every": 2, "threads": 1, "log_rollouts_every": 0},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values if isinstance(values, dict) else values
    return Recipe.model_validate(base)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def file_limit(size: int):
    """No file may grow over `size` bytes: writing more fails as on a full disk (another errno, the same exception)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def reference_of(session) -> tuple:
    """The reference of a session, and the policy of its own under it (None where it has none)."""
    opened, before = [], reference.open_policy

    def open_policy(*args, **kwargs) -> LoadedPolicy:
        opened.append(before(*args, **kwargs))
        return opened[-1]

    with mock.patch.object(reference, "open_policy", open_policy):
        found = reference.load_reference(session)
    return found, opened[0].policy if opened else None


def untimed(run_dir: Path) -> list[dict]:
    """The metrics of a run without those of a clock, of servers, and of a cache, which is empty in a new process."""
    dropped = ("time/", "perf/", "vision_cache/", "rollout/wait_s", "rollout/generate_s")
    dropped += ("rollout/asked_again", "rollout/servers_lost")
    return [{k: v for k, v in row.items() if not k.startswith(dropped)} for row in read_metrics(run_dir)]


def killed_runs(run: Recipe, folder: Path, shares: list[float], how: str = "SIGKILL") -> list[str]:
    """Whether each run killed at these shares of a run's time, then started again, equals the one never killed."""
    file = folder / "recipe.yaml"
    file.write_text(resolved_yaml(run))
    script = Path(__file__).parent / "runtime" / "kill_runs.py"
    command = [sys.executable, str(script), str(file), str(folder), how, *map(str, shares)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()
