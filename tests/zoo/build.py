"""How a zoo checkpoint is made: a tokenizer of bytes with a family's special tokens, random weights, and the files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "initializer_range": 0.1, "max_position_embeddings": 4096}
"""A small language model of most kinds."""
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIGLIP |= {"patch_size": 4, "image_size": 16, "initializer_range": 0.1}
"""A small vision tower of most kinds: images of 16 pixels, 4 x 4 patches."""


def tokenizer(special: Sequence[str], eos: str, named: Mapping[str, str] | None = None) -> PreTrainedTokenizerFast:
    """Every byte is a token, two newlines are one, and so is each special token; `named` become attributes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "ĊĊ"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=eos, pad_token=eos, clean_up_tokenization_spaces=False
    )
    found.add_tokens([*special], special_tokens=True)
    if named:
        found._set_model_specific_special_tokens(dict(named))
    return found


def save(folder: Path, config: dict, tokens: PreTrainedTokenizerFast, files: Mapping[str, dict], template: str) -> None:
    """Write config.json, weights, tokenizer, the family's JSON files and its chat template, as they are published."""
    text = {"vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id}
    text |= {"bos_token_id": None, **config["text_config"]}
    settings = AutoConfig.for_model(**config | {"text_config": text})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForImageTextToText.from_config(settings, dtype=torch.float32)
        with torch.no_grad():  # norms, biases and embeddings of positions start equal: give each its own gradient
            for parameter in model.parameters():
                if parameter.ndim < 2 or not parameter.any():
                    parameter += 0.05 * torch.randn(parameter.shape)
    model.generation_config = GenerationConfig(eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(template)
