"""The model card of a run's `final/`: what it was trained on and how, what it scores, and how to run it."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import yaml

from vlm_r1 import __version__
from vlm_r1.config import DataSource, LoraConfig, Recipe
from vlm_r1.config_file import load_config
from vlm_r1.envs.environment import build_environment
from vlm_r1.models.load import resolve_path
from vlm_r1.prompts.templates import build_question
from vlm_r1.records import Sample, Truth
from vlm_r1.report.compare import to_markdown
from vlm_r1.report.evaluations import compare_rows, load_evaluations
from vlm_r1.runtime.runlog import write_atomically

CARD = "README.md"
PLACE = "FOLDER_OR_HUB_ID"
"""Stands in a card for the name under which the model is found; `vlm-r1 push` fills it in."""

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `--max-lora-rank`."""

LICENCE_KEYS = ("license", "license_name", "license_link")

_SPACES = {
    "original_pixels": "pixels of the original image",
    "relative_1000": "0 to 1000 of the image's width and height",
    "qwen2_5_vl": "pixels of the image as the processor resizes it (`image_grid_thw` x patch size)",
    "paligemma": "location tokens, `<loc0000>` to `<loc1023>`, y before x",
    "llava_next": "shares (0 to 1) of the image's width and height",
    "llava_onevision": "shares (0 to 1) of the image's width and height",
}

_BODY = Template("""
# $title

$base_sentence with [VLM-R1](https://arxiv.org/abs/2504.07615): $method.

| | |
|---|---|
| base | $base |
| trained on | $data |
| steps | $steps |
| trained parts | $parts |
| rewards | $rewards |
| licence | $licence |
| made with | vlm-r1 $version |

## Held-out results

$results

## How to run it

Boxes are written as $space. `vlm-r1 predict $place image.png "$example"` answers in pixels of the original image.

With transformers (and torchvision, which the processors of some models ask for):

```python
$transformers
```

With vLLM:

```bash
$serve
```

```python
$client
```

## Recipe

Settings that differ from the defaults; paths are shortened to their last name.

```yaml
$recipe```
""")

_TRANSFORMERS = Template("""from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("$place", dtype="auto")
processor = AutoProcessor.from_pretrained("$place")
text = $text.replace("{question}", "$example")
content = [{"type": "image", "image": Image.open("image.png").convert("RGB")}, {"type": "text", "text": text}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
output = model.generate(**inputs.to(model.device), max_new_tokens=$tokens, do_sample=False$stop)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))""")

_CLIENT = Template("""import base64
import httpx

image = base64.b64encode(open("image.png", "rb").read()).decode()
text = $text.replace("{question}", "$example")
content = [
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    {"type": "text", "text": text},
]
messages = [{"role": "user", "content": content}]
request = {"model": "model", "messages": messages, "max_tokens": $tokens, "temperature": 0$stop}
reply = httpx.post("http://localhost:8000/v1/chat/completions", json=request, timeout=600)
print(reply.json()["choices"][0]["message"]["content"])""")


def write_card(run_dir: Path, folder: Path | None = None) -> Path:
    """Write the card of a run's model into `folder` (default: its `final/`); returns the file.

    Raises `UserError` where the run's files cannot be read.
    """
    file = (folder or Path(run_dir) / "final") / CARD
    write_atomically(file, model_card(Path(run_dir), file.parent).encode())
    return file


def model_card(run_dir: Path, folder: Path) -> str:
    """The card of the model in `folder`, which a run made: metadata for the Hugging Face hub, then Markdown."""
    from huggingface_hub import ModelCardData

    recipe = load_config(run_dir / "config.yaml")
    adapter = (folder / "adapter_config.json").is_file()
    base, licence = recipe.model.path, licence_of(recipe.model.path)
    if recipe.model.init == "scratch":
        base = "none: random weights"
    on_hub = recipe.model.init == "pretrained" and not Path(base).exists() and base != "tiny"
    hubs = [source.hub for source in recipe.data.train if source.hub]
    extra: dict[str, Any] = {"base_model_relation": "adapter" if adapter else "finetune"} if on_hub else {}
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text",
        base_model=base if on_hub else None,
        datasets=hubs or None,
        tags=["vlm-r1", recipe.method, *(["lora"] if adapter else [])],
        **licence,
        **extra,
    )
    rl, rewards = recipe.rl, ", ".join(f"{name} x {weight:g}" for name, weight in recipe.rewards.parts.items())
    method = f"{rl.algorithm}, {rl.group_size} completions of each of {rl.prompts_per_step} prompts a step"
    body = _BODY.substitute(
        title=_short(run_dir.resolve().name),
        base_sentence=f"{_short(base)} trained" if recipe.model.init == "pretrained" else "Trained from random weights",
        method="supervised fine-tuning" if recipe.method == "sft" else f"reinforcement learning ({method})",
        base=_short(base),
        data="; ".join(map(_source, recipe.data.train)),
        steps=recipe.run.steps,
        parts=", ".join(f"{part} {how}" for part, how in recipe.train.how().items()),
        rewards="none" if recipe.method == "sft" else rewards,
        licence=licence.get("license_name") or licence.get("license") or "not stated; the base's terms apply",
        version=__version__,
        results=_results(run_dir),
        space=_space(recipe, folder),
        recipe=_settings(recipe),
        place=PLACE,
        example="the red circle",
        **_programs(recipe, adapter, base),
    )
    return f"---\n{data.to_yaml()}\n---\n{body}"


def licence_of(model: str) -> dict[str, Any]:
    """The licence fields of a base model's own card; empty where it is not at hand. Asks no network."""
    from huggingface_hub import ModelCard

    file = _file_of(model, CARD)
    if file is None:
        return {}
    found = ModelCard.load(file, ignore_metadata_errors=True).data.to_dict()
    return {key: found[key] for key in LICENCE_KEYS if found.get(key)}


def _file_of(model: str, name: str) -> Path | None:
    """A file of a model folder, or of a hub id whose files are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    file = Path(resolve_path(model), name)
    if file.is_file():
        return file
    cached = None if Path(model).is_absolute() or model.count("/") != 1 else try_to_load_from_cache(model, name)
    return Path(cached) if isinstance(cached, str) else None


def _programs(recipe: Recipe, adapter: bool, base: str) -> dict[str, str]:
    """The commands and programs of the card."""
    task = next((source.task for source in recipe.data.train if source.task), None) or "rec"
    sample = Sample(id="card", question="{question}", truth=Truth(), task=task)
    stopped = recipe.rollout.stop_at_answer
    values = {
        "text": json.dumps(build_question(sample, recipe.prompt.template, _tools(recipe)), ensure_ascii=False),
        "tokens": recipe.eval.max_new_tokens,
        "example": "the red circle",
        "place": PLACE,
    }
    serve = f"vllm serve {PLACE} --served-model-name model"
    if adapter:
        rank = (recipe.lora or LoraConfig()).rank
        most = next((size for size in VLLM_RANKS if size >= rank), rank)
        serve = f"vllm serve {_short(base)} --enable-lora --lora-modules model={PLACE} --max-lora-rank {most}"
    stop = ',\n    stop_strings=["</answer>"], tokenizer=processor.tokenizer,\n'
    client = ', "stop": ["</answer>"], "include_stop_str_in_output": True'
    return {
        "transformers": _TRANSFORMERS.substitute(values, stop=stop if stopped else ""),
        "client": _CLIENT.substitute(values, stop=client if stopped else ""),
        "serve": serve,
    }


def _results(run_dir: Path) -> str:
    """The evaluations before and after as a table with intervals and paired differences."""
    if not (run_dir / "eval.json").is_file():
        return "Not evaluated."
    found = {model.name.rpartition(" ")[2]: model for model in load_evaluations(str(run_dir))}
    names = [phase for phase in ("before", "after") if phase in found]
    if not names:
        return "Not evaluated."
    table = to_markdown(names, compare_rows([found[name] for name in names]))
    return f"Greedy answers.\n\n{table}".strip()


def _space(recipe: Recipe, folder: Path) -> str:
    if recipe.prompt.coordinates != "family":
        return _SPACES[recipe.prompt.coordinates]
    config = _file_of(str(folder), "config.json") or _file_of(recipe.model.path, "config.json")
    kind = json.loads(config.read_bytes()).get("model_type", "") if config else ""
    return _SPACES.get(kind, _SPACES["relative_1000"])


def _source(source: DataSource) -> str:
    if source.scenes is not None:
        return "generated scenes (synthetic images)"
    name = source.hub or _short(source.path or "")
    return name if source.sampling == "all" else f"{name} ({source.sampling})"


def _settings(recipe: Recipe) -> str:
    values = _shortened(recipe.model_dump(mode="json", exclude_defaults=True))
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100))


def _shortened(value: Any) -> Any:
    """A prefix group of settings without the folders of this machine."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return _short(value) if isinstance(value, str) else value


def _short(path: str) -> str:
    """The last name of an absolute path, or of one that leaves its folder; other texts as they are."""
    outside = path.startswith(("/", "~", "..")) or Path(path).is_absolute()
    return Path(path).name if outside else path


def _tools(recipe: Recipe) -> str:
    return "" if recipe.env is None else build_environment(recipe.env).instructions(recipe.env.max_calls)
