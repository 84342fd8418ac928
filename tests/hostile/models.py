"""Model folders: files of another model, damaged, leading out of the folder, with code, and templates that fail."""

import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from support import noise_image, save_tiny

from hostile import Case, damaged
from vlm_r1.config import ModelConfig
from vlm_r1.models.load import load_policy, load_without_weights, prompt_of_model
from vlm_r1.records import Sample, Truth

Changes = dict[str, bytes | None]
"""File of a model folder -> what it holds instead; None: it is not there."""


@cache
def base() -> Path:
    """A small good model."""
    return save_tiny(Path(tempfile.mkdtemp(prefix="hostile-model-")))


def changed(name: str, change: Callable[[Any], Any]) -> Changes:
    """A JSON file of the good model with a change."""
    content = json.loads((base() / name).read_bytes())
    change(content)
    return {name: json.dumps(content).encode()}


def config(**values: Any) -> Changes:
    return changed("config.json", lambda found: found.update(values))


def text_config(**values: Any) -> Changes:
    return changed("config.json", lambda found: found["text_config"].update(values))


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Changes:
    """The good model's weights with a change."""
    found = load_file(base() / "model.safetensors")
    change(found)
    return {"model.safetensors": save(found, {"format": "pt"})}


def index(**files: str) -> Changes:
    """An index in the place of the weights: parameter -> file."""
    names = load_file(base() / "model.safetensors")
    content = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors") | files}
    one = (base() / "model.safetensors").read_bytes()
    return {
        "model.safetensors": None,
        "model-1.safetensors": one,
        "model.safetensors.index.json": json.dumps(content).encode(),
    }


FOREIGN = "raise SystemExit('foreign code ran')"


class Attack:
    """Ends the process where it is unpickled."""

    def __reduce__(self):
        return exec, (FOREIGN,)


def pickled(value: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink)
    return sink.getvalue()


def nested(depth: int) -> bytes:
    return b'{"model_type": ' * depth + b"1" + b"}" * depth


ADAPTER = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
SETTINGS, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


def adapter(files: Changes, **values: Any) -> Changes:
    """An adapter of the good model."""
    gone: Changes = dict.fromkeys((path.name for path in base().iterdir()), None)
    content = ADAPTER | {"base_model_name_or_path": str(base())} | values
    return gone | {SETTINGS: json.dumps(content).encode()} | files


CODE = {"code.py": FOREIGN.encode()}
CODED = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model", "AutoProcessor": "code.Processor"}
PROCESSOR, TOKENIZER, INDEX = "processor_config.json", "tokenizer_config.json", "model.safetensors.index.json"
OTHER_IMAGES = {"image_processor_type": "No", "auto_map": {"AutoImageProcessor": "code.Images"}}
HEAD = "model.language_model.embed_tokens.weight"
LOADS = r"model\.path: .* cannot be loaded"
SHAPES = LOADS + ": its weights have other shapes than its config.json says"
NEEDS_CODE = LOADS + ": it needs code of its own, which is not run"
PROCESSES = r"model\.path: no processor can be loaded from"
RENDERS = r"model\.path: the model's chat template fails"
NAMES = r"index\.json: names .* which is no \.safetensors file of the folder"

CONFIGS = {
    "a size that is a text": text_config(hidden_size="big"),
    "a negative size": text_config(hidden_size=-5),
    "a list for a section": config(text_config=[1]),
    "a text for a section": config(vision_config="x"),
    "a list for its type": config(model_type=["qwen3_vl"]),
    "no type": changed("config.json", lambda found: found.pop("model_type")),
    "a type that does not exist": config(model_type="no_such"),
    "a dtype that does not exist": config(dtype="float7"),
    "an activation that does not exist": text_config(hidden_act="no_such"),
    "a list": {"config.json": b"[]"},
    "a number": {"config.json": b"3"},
    "nothing": {"config.json": b""},
    "bytes that are not UTF-8": {"config.json": b"\xff\xfe{}"},
    "5000 levels": {"config.json": nested(5_000)},
    "as many levels as JSON may have": {"config.json": nested(900)},
    "a deep generation_config": {"generation_config.json": nested(5_000)},
    "a list for generation_config": {"generation_config.json": b"[]"},
}
PROCESSING = {
    "a deep processor_config": {PROCESSOR: nested(5_000)},
    "a deep tokenizer_config": {TOKENIZER: nested(5_000)},
    "a tokenizer that is a list": {"tokenizer.json": b"[]"},
    "a tokenizer that is empty": {"tokenizer.json": b"{}"},
    "no tokenizer": {"tokenizer.json": None},
}
TEMPLATES = {
    "does not parse": "{% for",
    "fails": "{{ 1 / 0 }}",
    "raises": "{{ raise_exception('no') }}",
    "reaches out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "includes a file": "{% include '/etc/passwd' %}",
    "calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "never ends": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
}
CASES = [
    *(Case(f"a config with {name}", changes, LOADS) for name, changes in CONFIGS.items()),
    *(Case(name, changes, PROCESSES) for name, changes in PROCESSING.items()),
    *(
        Case(f"a template that {name}", {"chat_template.jinja": text.encode()}, RENDERS)
        for name, text in TEMPLATES.items()
    ),
    Case("no template", {"chat_template.jinja": None}, RENDERS),
    Case("patches of no pixels", changed(PROCESSOR, lambda c: c["image_processor"].update(patch_size=0)), "refuses it"),
    Case("prompt settings that are a list", {"vlm_r1.json": b"[[]]"}, "holds no prompt settings"),
    Case("deep prompt settings", {"vlm_r1.json": nested(5_000)}, "holds no prompt settings"),
    Case("a prompt that does not ask", {"vlm_r1.json": b'{"template": "{0.__class__}"}'}, "is neither a template"),
    Case("a prompt of half a character", {"vlm_r1.json": b'{"template": "{question}\\ud83d"}'}, "no prompt settings"),
    Case("weights of another shape", weights(lambda w: w.update({HEAD: w[HEAD][:-1].clone()})), SHAPES),
    Case("weights of one number", weights(lambda w: w.update({HEAD: torch.zeros(())})), SHAPES),
    Case("weights of integers", weights(lambda w: w.update({HEAD: w[HEAD].long()})), None),
    Case("a larger vocabulary than weights", text_config(vocab_size=401), SHAPES),
    Case("heads that do not divide", text_config(num_attention_heads=3, num_key_value_heads=2), SHAPES),
    Case("a huge size", text_config(hidden_size=1 << 40), SHAPES),
    Case("an index that leads out", index(**{HEAD: "../../x.bin"}), NAMES),
    Case("an index that leads to safetensors outside", index(**{HEAD: "../../x.safetensors"}), NAMES),
    Case("an index that leads to the root", index(**{HEAD: "/etc/passwd"}), NAMES),
    Case("an index of pickles", index(**{HEAD: "a.bin"}) | {"a.bin": pickled({"a": Attack()})}, NAMES),
    Case(
        "an index of a file that is not there", index(**{HEAD: "model-2.safetensors"}), LOADS + ".*model-2.safetensors"
    ),
    Case("an index without files", index() | {INDEX: b"{}"}, "has no weight_map"),
    Case("an index that is a list", index() | {INDEX: b"[]"}, "has no weight_map"),
    Case("an index of numbers", index() | {INDEX: b'{"metadata": {}, "weight_map": {"a": 3}}'}, NAMES),
    Case("a deep index", index() | {INDEX: nested(5_000)}, LOADS),
    Case("pickled weights", {"model.safetensors": None, "pytorch_model.bin": pickled({"a": Attack()})}, LOADS),
    Case("a pickle called safetensors", {"model.safetensors": pickle.dumps(Attack())}, LOADS),
    Case("a huge header", {"model.safetensors": (1 << 62).to_bytes(8, "little") + b"{}"}, LOADS),
    Case("code for its config", config(model_type="no_such", auto_map=CODED) | CODE, NEEDS_CODE),
    Case(
        "code for its processor",
        changed(PROCESSOR, lambda c: c.update(processor_class="No", auto_map=CODED)) | CODE,
        NEEDS_CODE,
    ),
    Case(
        "code for its images",
        changed(PROCESSOR, lambda c: c["image_processor"].update(OTHER_IMAGES)) | CODE,
        NEEDS_CODE,
    ),
    Case("an adapter as a pickle", adapter({PICKLE: pickled({"a": torch.zeros(1)})}), "are not read"),
    Case("an adapter as a pickle with code", adapter({PICKLE: pickled({"a": Attack()})}), "are not read"),
    Case("an adapter without weights", adapter({}), LOADS + ": it has no adapter_model.safetensors"),
    Case("an adapter of other weights", adapter({WEIGHTS: save({"x": torch.zeros(1)})}), "are not those that its"),
    Case("an adapter of a kind that does not exist", adapter({WEIGHTS: save({})}, peft_type="NO"), LOADS),
    Case("an adapter of odd layers", adapter({WEIGHTS: save({})}, target_modules=[3]), LOADS),
    Case("an adapter of a negative rank", adapter({WEIGHTS: save({})}, r=-1), LOADS),
    Case("a deep adapter", adapter({SETTINGS: nested(5_000)}), "not an adapter configuration"),
    Case("an adapter that is a list", adapter({SETTINGS: b"[]"}), "not an adapter configuration"),
    Case(
        "an adapter whose base is elsewhere",
        adapter({}, base_model_name_or_path="../../x"),
        "the base model .* is not there",
    ),
]


def _folder(content: Changes, folder: Path) -> ModelConfig:
    path = folder / "model"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(base(), path)
    for name, data in content.items():
        (path / name).unlink(missing_ok=True)
        if data is not None:
            (path / name).write_bytes(data)
    return ModelConfig(path=str(path))


def _answers(content: Changes, folder: Path, load: Callable[..., Any]) -> None:
    with mock.patch("builtins.input", side_effect=KeyboardInterrupt("a question was asked")):
        config = _folder(content, folder)
        loaded = load(config, prompt_of_model(config.path))
        loaded.family.encode(Sample(id="0", question="q", truth=Truth(), images=(noise_image(40, 30),)))


DOORS = {
    "with its weights": lambda content, folder: _answers(content, folder, load_policy),
    "without its weights": lambda content, folder: _answers(content, folder, load_without_weights),
}
OTHERWISE = {"without its weights": ...}

FUZZED = (
    "config.json",
    PROCESSOR,
    TOKENIZER,
    "generation_config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "vlm_r1.json",
)
CONTENTS = st.sampled_from((*FUZZED, "model.safetensors")).flatmap(
    # No byte is added: a longer number would ask for a larger model than any machine has.
    lambda name: damaged([(base() / name).read_bytes()], how=("set", "end")).map(lambda data: {name: data})
)
EXAMPLES = 15
